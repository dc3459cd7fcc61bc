"""The parts of `nodelet-cri` put together, started in order, and stopped in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpc import aio

from cri.config import RUNTIME_NAME, Settings, host_port
from cri.images.store import ImageStore
from cri.network import Network
from cri.runtime.client import Runtime, Spawner
from cri.runtime.identity import held_capabilities
from cri.runtime.oci.handlers import load
from cri.runtime.seccomp import compile_default
from cri.runtime.security import DEFAULT_CAPABILITIES, capability_mask
from cri.server.container_events import follow_runtime
from cri.server.core import Core
from cri.server.restart import recover
from cri.server.service import register
from cri.state.store import Store
from cri.streaming.server import StreamServer
from cri.streaming.tokens import Tokens
from host import notify
from host.cgroups.driver import load as load_cgroups
from host.clocks import SystemClock
from host.errors import Busy, InputError
from host.files import locked
from host.unixsockets import clear

log = logging.getLogger(__name__)

_MESSAGE_LIMIT = 16 << 20
_GRACE_SECONDS = 2.0
_SETTLE_SECONDS = 10.0
_THREADS = 8


class Daemon:
    """One CRI server on one socket and one state folder, whose lock the caller holds."""

    def __init__(self, settings: Settings, *, spawner: Any, userns_missing: str = "") -> None:
        """Nothing happens before `run`. `userns_missing`: as in `Core`."""
        self._settings = settings
        self._userns_missing = userns_missing
        self._spawner: Spawner = spawner

    async def run(self, stop: asyncio.Event) -> None:
        """Recover, serve until `stop` is set, then leave; sandboxes and containers go on.

        Raises:
            InputError: the socket or the stream port belongs to somebody else.
            HostError: the machine refused.
        """
        settings = self._settings
        await start_threads()
        clock = SystemClock()
        cgroups = await asyncio.to_thread(load_cgroups, settings.cgroup_driver, settings.cgroup_root)
        images = ImageStore(
            settings.root / "images",
            registry_config_dir=settings.registry_config_dir,
            max_concurrent_downloads=settings.max_concurrent_downloads,
            progress_timeout=float(settings.image_pull_progress_timeout),
            pinned=settings.pinned_images,
        )
        store = Store(settings.state)
        store.load()
        tokens = Tokens(clock)
        host, port = host_port(settings.stream_address)
        async with contextlib.AsyncExitStack() as stack:
            await _open(images, settings.root)
            stack.push_async_callback(images.close)
            runtime = Runtime(settings.state / "runtime", spawner=self._spawner, cgroups=cgroups)
            stack.push_async_callback(runtime.close)
            streams = StreamServer(tokens=tokens, runtime=runtime, store=store)
            stream_url = await streams.start(host, port)
            stack.push_async_callback(streams.close)
            core = Core(
                settings=settings,
                store=store,
                runtime=runtime,
                images=images,
                network=Network(conf_dir=settings.cni_conf_dir, bin_dir=settings.cni_bin_dir),
                cgroups=cgroups,
                clock=clock,
                tokens=tokens,
                boot_id=boot_id(),
                stream_url=stream_url,
                handlers=await asyncio.to_thread(load, settings.runtime_handlers),
                userns_missing=self._userns_missing,
            )
            follower = asyncio.create_task(follow_runtime(core))
            stack.push_async_callback(_cancel, follower)
            await recover(core)
            await asyncio.to_thread(compile_default, capabilities=DEFAULT_CAPABILITIES)  # kept for all pods
            await stack.enter_async_context(_grpc_server(core))
            _tell_what_is_missing()
            notify.ready()
            log.info(
                "%s serves %s, streams at %s, cgroup driver %s",
                *(RUNTIME_NAME, settings.listen, stream_url, cgroups.driver),
            )
            await _until(stop, follower)
            notify.stopping()
            core.events.close()
            with contextlib.suppress(TimeoutError):  # what is not done by then is taken up at the next start
                await asyncio.wait_for(core.joined.settle(), _SETTLE_SECONDS)


async def start_threads() -> None:
    """Have every thread of `asyncio.to_thread` run already when one is needed.

    On a node that is out of processes none could be started then, after its work has been queued: a call
    would fail, and be done all the same by the next thread that is free.
    """
    executor = ThreadPoolExecutor(_THREADS)
    asyncio.get_running_loop().set_default_executor(executor)
    barrier = threading.Barrier(_THREADS)
    await asyncio.gather(*(asyncio.to_thread(barrier.wait) for _ in range(_THREADS)))


async def _open(images: ImageStore, root: Path) -> None:
    try:
        await images.open()
    except Busy as exc:
        raise InputError(f"another nodelet-cri uses {root}, {exc.detail}: stop it or set --root") from exc


def _tell_what_is_missing() -> None:
    """Once, and not with every container: without this capability the kernel refuses two things of each."""
    if not held_capabilities() & capability_mask(["SYS_RESOURCE"]):
        log.warning("no CAP_SYS_RESOURCE: an oom_score_adj below ours and hard limits above ours are not set")


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """The kernel's name for this boot."""
    return path.read_text(encoding="ascii").strip()


async def _until(stop: asyncio.Event, follower: asyncio.Task[None]) -> None:
    """Wait for the stop signal; should the event follower end first, its error ends the daemon too."""
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({waiting, follower}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if follower in done:
        follower.result()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def _grpc_server(core: Core) -> AsyncIterator[None]:
    """The CRI socket: mode 0600, a stale one replaced, a live one respected."""
    path = core.settings.socket_path
    server = aio.server(
        options=(
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
            ("grpc.max_send_message_length", _MESSAGE_LIMIT),
            ("grpc.so_reuseport", 0),
        )
    )
    register(core, server)
    with locked(path.with_name(path.name + ".lock")):
        await asyncio.to_thread(clear, path, fix="set --listen")
        # umask 077 is in force, so the socket is born 0600.
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as exc:
            raise InputError(f"cannot listen on {path}: choose another --listen") from exc
        await server.start()
    path.chmod(0o600)
    try:
        yield
    finally:
        await server.stop(_GRACE_SECONDS)

"""After a restart of the daemon: make records, kernel and images agree again.

Assumptions: supervisors and their containers went on while the daemon was away and have their facts on disk;
after a reboot none of them lives. What was half made is undone, what was running is followed again, what
ended meanwhile gets its exit. The kernel is believed, the records are corrected.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence

import msgspec

from cri.images.errors import ImageError
from cri.network import NetworkError
from cri.runtime.spec import ContainerExit
from cri.server.container_create import DELETE_LAYER, data_folder, prepare_again, undo_container
from cri.server.container_events import apply_exit, lose_sandbox, take_exits
from cri.server.container_layers import delete_folder
from cri.server.core import Core
from cri.server.sandbox_run import undo_sandbox
from cri.state.records import ContainerState, SandboxState
from cri.state.store import Sandbox
from host.errors import HostError, InputError
from host.failpoints import reach

log = logging.getLogger(__name__)

_RECOVER = "recover"
_PATIENCE_SECONDS = 10.0
"""How long the socket may stay shut for sandboxes that do not answer: well below the 90 s after which systemd
takes a program that starts for one that hangs."""


async def recover(core: Core) -> None:
    """Bring everything on record up to date; must end before the first call is answered."""
    for container in list(core.store.containers.values()):
        if container.record.state is not ContainerState.MAKING:
            for image_id in (container.record.image_id, *container.record.volume_images):
                _hold_image(core, container.id, image_id)
    reach("recover.images_held")
    sandboxes = list(core.store.sandboxes.values())
    await _recover_sandboxes(core, sandboxes)
    reach("recover.sandboxes")
    await _drop_orphans(core)
    reach("recover.orphans")
    await core.images.collect()
    reach("recover.images")
    await _collect_network(core)


def _hold_image(core: Core, container_id: str, image_id: str) -> None:
    try:
        core.images.hold(image_id, container_id)
    except ImageError as exc:
        log.warning("image of container %s is gone: %s", container_id, exc)


async def _recover_sandboxes(core: Core, sandboxes: Sequence[Sandbox]) -> None:
    """All at once. One that is stuck (a stopped supervisor, a network plugin that hangs) is named, and goes
    on by itself while the others are served."""
    late = {sandbox.id for sandbox in sandboxes}

    async def recover_one(sandbox: Sandbox) -> None:
        await _recover_sandbox(core, sandbox)
        late.discard(sandbox.id)

    for sandbox in sandboxes:
        core.joined.begin((_RECOVER, sandbox.id), functools.partial(recover_one, sandbox))
    try:
        await asyncio.wait_for(core.joined.settle(_RECOVER), _PATIENCE_SECONDS)
    except TimeoutError:
        for sandbox_id in sorted(late):
            meta = core.store.sandboxes[sandbox_id].config.metadata
            log.error(
                "pod %s/%s is stuck: sandbox %s is not recovered after %.0f s, the others go on without it",
                *(meta.namespace, meta.name, sandbox_id, _PATIENCE_SECONDS),
            )


async def _recover_sandbox(core: Core, sandbox: Sandbox) -> None:
    """One sandbox must never keep the others from being found, so its failure is only logged."""
    try:
        if sandbox.record.state is SandboxState.MAKING:
            await undo_sandbox(core, sandbox)
            return
        for container in core.store.containers_of(sandbox.id):
            if container.record.state is ContainerState.MAKING:
                await undo_container(core, container)
        if sandbox.record.state is SandboxState.READY:
            facts = await take_exits(core, sandbox)
            if facts is None or sandbox.record.boot_id != core.boot_id:
                lose_sandbox(core, sandbox)
            else:
                await _prepare_rest(core, sandbox, {item.id for item in facts.containers})
    except (HostError, NetworkError) as exc:
        log.error("sandbox %s could not be recovered: %s", sandbox.id, exc)
        if sandbox.record.state is SandboxState.MAKING:
            # Kept as a stopped one, so that the kubelet sees it and removes it.
            record = msgspec.structs.replace(
                sandbox.record, ready_at=sandbox.record.created_at, stopped_at=core.now()
            )
            core.store.put_sandbox(sandbox, record)


async def _prepare_rest(core: Core, sandbox: Sandbox, known: set[str]) -> None:
    """Prepare the containers that the runtime had not yet been asked for, or not yet finished."""
    for container in core.store.containers_of(sandbox.id):
        if container.record.state is not ContainerState.CREATED or container.id in known:
            continue
        try:
            await prepare_again(core, container)
        except (ImageError, InputError, HostError) as exc:
            apply_exit(core, container, ContainerExit(code=128, finished_at=core.now(), error=str(exc)))


async def _drop_orphans(core: Core) -> None:
    """Remove what has no record: sandboxes of the runtime, containers of lost sandboxes, writable layers."""
    for sandbox_id in core.runtime.sandbox_ids():
        if sandbox_id not in core.store.sandboxes:
            log.warning("removing sandbox %s, which has no record", sandbox_id)
            try:
                await core.runtime.remove_sandbox(sandbox_id)
            except HostError as exc:
                log.error("sandbox %s could not be removed: %s", sandbox_id, exc)
    for container in list(core.store.containers.values()):
        if container.record.sandbox_id not in core.store.sandboxes:
            await undo_container(core, container)
    await core.joined.settle(DELETE_LAYER)
    folder = data_folder(core, "x").parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in core.store.containers:
            try:
                await asyncio.to_thread(delete_folder, path)
            except HostError as exc:
                log.error("layer of a removed container stays: %s", exc)


async def _collect_network(core: Core) -> None:
    """CNI GC: addresses and devices of sandboxes that are no more."""
    try:
        conflist = core.network.conflist()
        valid = [
            item.id
            for item in core.store.sandboxes.values()
            if item.record.network and not item.record.network_removed
        ]
        await core.network.collect(conflist, valid)
    except NetworkError as exc:
        log.info("no network to clean up: %s", exc)

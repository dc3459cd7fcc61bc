"""RunPodSandbox: namespaces, then network.

Each step's intent is on disk before the step: the record comes first, with the path of the namespace and the
network configuration in force, so that `undo_sandbox` can take everything back after a crash at any point.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
from pathlib import Path

import msgspec

from cri.network import NetworkError
from cri.runtime.oci.handlers import find
from cri.server.container_events import tell
from cri.server.core import Core
from cri.server.errors import AlreadyExists, unimplemented
from cri.server.sandbox_check import check_sandbox
from cri.server.sandbox_plan import pod_network, sandbox_key, sandbox_spec, small_files
from cri.state.records import SandboxRecord, SandboxState
from cri.state.store import Sandbox
from host.errors import Busy, from_errno
from host.failpoints import reach
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

_UNDO_SECONDS = 60.0
_NODE_RESOLV_CONF = Path("/etc/resolv.conf")
_NODE_HOSTS = Path("/etc/hosts")


async def run_pod_sandbox(core: Core, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
    """Make a sandbox and connect it; the same pod and attempt again gives the same sandbox.

    Raises:
        InputError: a field of the configuration, or a runtime handler that is not configured.
        AlreadyExists: this pod and attempt had a sandbox that has been stopped.
        NetworkError: CNI failed; nothing is left behind.
    """
    config = request.config
    check_sandbox(config)
    handler = request.runtime_handler
    find(core.handlers, handler)
    key = sandbox_key(config)
    sandbox_id = await core.joined.run(("sandbox", key), lambda: _run(core, key, config, handler))
    return pb.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)


async def _run(core: Core, key: tuple[str, ...], config: pb.PodSandboxConfig, handler: str) -> str:
    for other in core.store.sandboxes.values():
        if sandbox_key(other.config) != key:
            continue
        if other.record.state is SandboxState.READY:
            return other.id
        if other.record.state is SandboxState.MAKING:  # not by an equal call, which would have been joined
            raise Busy(errno.EBUSY, f"pod {key[0]}/{key[1]}", f"half-made sandbox {other.id} is being undone")
        raise AlreadyExists(
            f"pod {key[0]}/{key[1]} attempt {key[3]} has the stopped sandbox {other.id}: remove it"
        )
    core.cgroups.check_parent(config.linux.cgroup_parent)
    parent = core.cgroups.parent_path(config.linux.cgroup_parent)
    sandbox_id = secrets.token_hex(32)
    spec = sandbox_spec(
        config,
        sandbox_id=sandbox_id,
        netns_dir=core.settings.netns_dir,
        node_name=os.uname().nodename,
        cgroup=core.cgroups.reaper_path(parent, sandbox_id),
    )
    if spec.user_namespace is not None:
        _check_user_namespaces(core, handler)
    files = small_files(
        config,
        hostname=spec.hostname,
        node_resolv_conf=_node_file(_NODE_RESOLV_CONF),
        node_hosts=_node_file(_NODE_HOSTS),
    )
    conflist = None if spec.host_network else core.network.conflist()
    record = SandboxRecord(
        id=sandbox_id,
        config=config.SerializeToString(),
        runtime_handler=handler,
        boot_id=core.boot_id,
        created_at=core.now(),
        netns=str(spec.netns_path or ""),
        network={"config": conflist} if conflist else {},
    )
    sandbox = core.store.add_sandbox(record, config)
    try:
        reach("sandbox_run.recorded")
        for name, content in files.items():
            write_small(core.store.sandbox_folder(sandbox_id) / name, content)
        await core.runtime.create_sandbox(spec)
        reach("sandbox_run.namespaces")
        if conflist:
            pod = pod_network(config, sandbox_id=sandbox_id, netns=record.netns)
            result = await core.network.add(conflist, pod)
            reach("sandbox_run.network_added")
            record = msgspec.structs.replace(record, network={"config": conflist, "result": result})
        core.store.put_sandbox(sandbox, msgspec.structs.replace(record, ready_at=core.now()))
        reach("sandbox_run.ready")
    except BaseException as exc:
        await _give_up(core, sandbox, exc)
        raise
    tell(core, pb.CONTAINER_CREATED_EVENT, sandbox_id, sandbox_id)
    tell(core, pb.CONTAINER_STARTED_EVENT, sandbox_id, sandbox_id)
    return sandbox_id


def _check_user_namespaces(core: Core, handler: str) -> None:
    """A pod with a user namespace is for a kernel that has what it needs, and for our own runtime."""
    if handler:
        raise unimplemented(f"user namespace of a pod with runtime handler {handler!r}")
    if core.userns_missing:
        raise from_errno(errno.EOPNOTSUPP, "user namespace of a pod", core.userns_missing)


async def _give_up(core: Core, sandbox: Sandbox, cause: BaseException) -> None:
    """Undo a failed run. Where that fails too the sandbox stays, stopped, so that the kubelet removes it
    later."""
    try:
        await asyncio.wait_for(undo_sandbox(core, sandbox), _UNDO_SECONDS)
    except (NetworkError, OSError, TimeoutError) as exc:
        cause.add_note(f"undoing it failed as well: {exc}")
        log.error("sandbox %s could not be undone: %s", sandbox.id, exc)
        now = core.now()
        core.store.note_sandbox(
            sandbox,
            msgspec.structs.replace(sandbox.record, ready_at=sandbox.record.created_at, stopped_at=now),
        )


async def undo_sandbox(core: Core, sandbox: Sandbox) -> None:
    """Take back whatever of a sandbox exists; works from the record alone and may be repeated."""
    await disconnect(core, sandbox)
    await core.runtime.remove_sandbox(sandbox.id)
    reach("sandbox_undo.removed")
    core.store.drop_sandbox(sandbox.id)
    core.rates.forget(core.cgroups.pod_path(sandbox.config.linux.cgroup_parent))


async def disconnect(core: Core, sandbox: Sandbox) -> None:
    """CNI DEL with the configuration ADD had, once."""
    record = sandbox.record
    if record.network and not record.network_removed:
        pod = pod_network(sandbox.config, sandbox_id=sandbox.id, netns=record.netns)
        await core.network.delete(record.network["config"], pod, record.network.get("result") or {})
        reach("sandbox_stop.network_deleted")
        core.store.note_sandbox(sandbox, msgspec.structs.replace(sandbox.record, network_removed=True))


def write_small(path: Path, content: bytes) -> None:
    """Write a file that is mounted into containers: world-readable, in a folder only root can enter."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, content)
    finally:
        os.close(fd)


def _node_file(path: Path) -> bytes:
    """Empty where the node has none."""
    try:
        return path.read_bytes()[: 1 << 20]
    except OSError:
        return b""

"""CreateContainer: a record, a writable layer, and (see `container_prepare`) a process that waits for
StartContainer."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from cri.images.errors import ImageMissing
from cri.images.model import Image
from cri.runtime.oci.handlers import find
from cri.runtime.spec import ContainerSpec, Device
from cri.server import container_prepare
from cri.server.cdi import container_edits
from cri.server.container_events import tell
from cri.server.container_image_volumes import mount_image, unmount_images
from cri.server.container_layers import copy_volumes, delete_folder, make_folders
from cri.server.container_lsm import labels_of, load_default_profile
from cri.server.container_plan import Place, check_config, container_spec, mounts_of, volume_targets
from cri.server.container_propagation import check_propagation
from cri.server.container_seccomp import seccomp_filter
from cri.server.core import Core
from cri.server.errors import AlreadyExists, FailedPrecondition
from cri.server.signals import stop_signal
from cri.server.user_namespaces import check_container, user_namespace
from cri.state.records import ContainerRecord, ContainerState, SandboxState
from cri.state.store import Container, Sandbox
from host.errors import HostError, InputError
from host.failpoints import reach
from host.lsm import security_modules
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

DELETE_LAYER = "delete layer"
"""First word of the key of a deletion that is under way; the sandbox's and the container's id follow."""


async def create_container(core: Core, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
    """Make a container in a ready sandbox; the same name and attempt again gives the same container.

    Raises:
        UnknownId: no such sandbox.
        FailedPrecondition: the sandbox is stopped, or a mount of the node does not propagate as asked.
        ImageMissing: the image has not been pulled.
        InputError, Unsupported: a field of the configuration; nothing is left behind.
    """
    sandbox = core.store.sandbox(request.pod_sandbox_id)
    check_config(request.config, sandbox.config)
    security = sandbox.config.linux.security_context
    check_container(request.config.linux.security_context.namespace_options, security.namespace_options)
    meta = request.config.metadata
    key = ("container", sandbox.id, meta.name, meta.attempt)
    container_id = await core.joined.run(key, lambda: _create(core, sandbox, request.config))
    return pb.CreateContainerResponse(container_id=container_id)


async def _create(core: Core, sandbox: Sandbox, config: pb.ContainerConfig) -> str:
    if (same := await _same_name(core, sandbox, config)) is not None:
        return same
    if sandbox.record.state is not SandboxState.READY:
        raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready")
    image = _image(core, config.image.image)
    volumes = [_image(core, mount.image.image) for mount in config.mounts if mount.image.image]
    container_id = secrets.token_hex(32)
    place = _place(core, sandbox, config, image, container_id)
    spec = await _spec(core, config, image, place)
    placement = core.runtime.plan_container(spec)  # refuses what is wrong
    container = core.store.add_container(_record(config, image, volumes, place), config)
    try:
        for held in (image, *volumes):
            core.images.hold(held.id, container_id)
        reach("container_create.recorded")
        filled = await _fill(core, place, config, volumes)
        reach("container_create.layer")
        if filled is not place:
            spec = replace(spec, mounts=mounts_of(config, filled))
            placement = core.runtime.plan_container(spec)
        check_propagation(spec.mounts)
        core.store.put_container(container, msgspec.structs.replace(container.record, created_at=core.now()))
        reach("container_create.created")
    except BaseException as exc:
        with suppress(HostError):
            await undo_container(core, container)
        if isinstance(exc, Exception):
            log.info("container %s of sandbox %s was not made: %s", config.metadata.name, sandbox.id, exc)
        raise
    container_prepare.begin(core, container, placement)
    tell(core, pb.CONTAINER_CREATED_EVENT, sandbox.id, container_id)
    return container_id


async def _spec(core: Core, config: pb.ContainerConfig, image: Image, place: Place) -> ContainerSpec:
    # Compiling a filter not seen before takes tens of milliseconds, which no other pod should wait for.
    seccomp = await asyncio.to_thread(
        seccomp_filter,
        config.linux.security_context,
        root=core.settings.seccomp_root,
        external=bool(place.oci_runtime),
    )
    pod = core.store.sandbox(place.sandbox_id).config.linux.security_context
    modules = security_modules()
    labels = labels_of(config.linux.security_context, pod, modules)
    await load_default_profile(labels, modules)
    return container_spec(
        config, image.config, place, seccomp=seccomp, labels=labels, devices=_devices(config)
    )


async def prepare_again(core: Core, container: Container) -> None:
    """Prepare a container that was on record when the daemon ended and of which the runtime knows nothing.

    Its layer has never been used, so all is made anew.

    Raises:
        ImageMissing, InputError, HostError: what it needs is there no longer.
    """
    config, record = container.config, container.record
    sandbox = core.store.sandbox(record.sandbox_id)
    await core.runtime.remove_container(sandbox.id, container.id)
    await asyncio.to_thread(delete_folder, data_folder(core, container.id))
    image = _image(core, record.image_id)
    volumes = [_image(core, image_id) for image_id in record.volume_images]
    place = await _fill(core, _place(core, sandbox, config, image, container.id), config, volumes)
    spec = await _spec(core, config, image, place)
    container_prepare.begin(core, container, core.runtime.plan_container(spec))


def _image(core: Core, name: str) -> Image:
    image = core.images.get(name)
    if image is None:
        raise ImageMissing(f"image {name[:200]!r} is not here: pull it first")
    return image


async def _same_name(core: Core, sandbox: Sandbox, config: pb.ContainerConfig) -> str | None:
    for other in core.store.containers_of(sandbox.id):
        meta = other.config.metadata
        if (meta.name, meta.attempt) != (config.metadata.name, config.metadata.attempt):
            continue
        if other.record.state is ContainerState.MAKING:
            # Not under way (equal calls join): it failed, and could not be undone at once.
            await undo_container(core, other)
            continue
        if other.record.state is ContainerState.EXITED:
            raise AlreadyExists(
                f"container {meta.name} attempt {meta.attempt} exists as {other.id}: remove it"
            )
        return other.id
    return None


def _record(
    config: pb.ContainerConfig, image: Image, volumes: Sequence[Image], place: Place
) -> ContainerRecord:
    return ContainerRecord(
        id=place.container_id,
        sandbox_id=place.sandbox_id,
        config=config.SerializeToString(),
        image_id=image.id,
        volume_images=tuple(item.id for item in volumes),
        image_ref=image.repo_digests[0] if image.repo_digests else image.id,
        log_path=str(place.log or ""),
        cgroup=place.cgroup,
        stop_signal=stop_signal(config.stop_signal, image.config.stop_signal),
    )


def data_folder(core: Core, container_id: str) -> Path:
    """The folder of a container's writable layer and anonymous volumes."""
    return core.settings.root / "containers" / container_id


def _place(
    core: Core, sandbox: Sandbox, config: pb.ContainerConfig, image: Image, container_id: str
) -> Place:
    data = data_folder(core, container_id)
    small = core.store.sandbox_folder(sandbox.id)
    targets = volume_targets(config, image.config)
    handler = find(core.handlers, sandbox.record.runtime_handler)
    parent = core.cgroups.parent_path(sandbox.config.linux.cgroup_parent)
    return Place(
        container_id=container_id,
        sandbox_id=sandbox.id,
        cgroup=core.cgroups.container_path(parent, container_id),
        upper=data / "upper",
        work=data / "work",
        lower=core.images.layers(image.id),
        log=log_file(sandbox.config.log_directory, config.log_path),
        resolv_conf=small / "resolv.conf",
        hostname_file=small / "hostname",
        hosts_file=small / "hosts",
        hostname=sandbox.config.hostname or os.uname().nodename,
        edits=container_edits(
            [device.name for device in config.CDI_devices], map(Path, core.settings.cdi_spec_dirs)
        ),
        volumes=tuple((data / f"volume-{index}", target) for index, target in enumerate(targets)),
        oci_runtime=handler.command if handler else (),
        user_namespace=user_namespace(sandbox.config.linux.security_context.namespace_options),
        images=tuple(data for mount in config.mounts if mount.image.image),  # until they are mounted
    )


def log_file(directory: str, relative: str) -> Path | None:
    """The log's path on the host, which may not leave the pod's log directory; None: no log is wanted.

    Raises:
        InputError: a path that is absolute or climbs.
    """
    if not directory or not relative:
        return None
    parts = relative.split("/")
    if not directory.startswith("/") or ".." in directory.split("/"):
        raise InputError(f"log_directory {directory[:80]!r} must be an absolute path without '..'")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InputError(f"log_path {relative[:80]!r} must stay inside the pod's log directory")
    return Path(directory, *parts)


def _devices(config: pb.ContainerConfig) -> list[Device]:
    found = []
    for item in config.devices:
        source = Path(item.host_path)
        if not item.host_path.startswith("/dev/") or ".." in source.parts:
            raise InputError(f"devices: host_path {item.host_path[:80]!r} must be below /dev")
        target, access = item.container_path or item.host_path, item.permissions or "rwm"
        if set(access) - set("rwm"):
            raise InputError(f"devices: permissions {access[:80]!r} of {target[:80]!r} must be of r, w and m")
        if source.is_dir():
            nodes = (
                path for path in sorted(source.rglob("*")) if path.is_block_device() or path.is_char_device()
            )
            found += [
                Device(source=node, target=f"{target}/{node.relative_to(source)}", access=access)
                for node in nodes
            ]
        else:
            found.append(Device(source=source, target=target, access=access))
    return found


async def _fill(core: Core, place: Place, config: pb.ContainerConfig, volumes: Sequence[Image]) -> Place:
    """Make what must exist on disk before the root is put together; the place with image volumes in it."""
    if place.log:
        _make_folder(place.log.parent)
    for mount in config.mounts:
        if mount.host_path:  # a missing one becomes a folder, as with every other runtime
            _make_folder(Path(mount.host_path))
    data = data_folder(core, place.container_id)
    make_folders(data, place.upper, place.work)
    if place.volumes:
        await asyncio.to_thread(copy_volumes, place.lower, place.volumes)
    if not volumes:
        return place
    mounts = [mount for mount in config.mounts if mount.image.image]
    mounted = []
    for index, (image, mount) in enumerate(zip(volumes, mounts, strict=True)):
        layers, path = core.images.layers(image.id), mount.image_sub_path
        owner = core.store.sandbox(place.sandbox_id).record.netns if mount.uidMappings else None
        mounted.append(await asyncio.to_thread(mount_image, data, index, layers, path, owner))
    return replace(place, images=tuple(mounted))


def _make_folder(path: Path) -> None:
    """A folder with its parents, readable by everybody whatever the daemon's umask; fine when it exists."""
    if path.exists():
        return
    _make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o755)


async def undo_container(core: Core, container: Container) -> None:
    """Take back whatever of a container exists; works from the record alone and may be repeated.

    The writable layer is deleted after the record, while nobody waits: `recover` deletes every layer that has
    no record, should the daemon end before. Mounts of image volumes in it go first, with their images.
    """
    record = container.record
    await core.runtime.remove_container(record.sandbox_id, container.id, cgroup=record.cgroup)
    reach("container_remove.runtime")
    data = data_folder(core, container.id)
    if container.record.volume_images:
        await asyncio.to_thread(unmount_images, data)
    for image_id in (container.record.image_id, *container.record.volume_images):
        core.images.release(image_id, container.id)
    reach("container_remove.images")
    core.store.drop_container(container.id)
    core.rates.forget(container.record.cgroup)
    key = (DELETE_LAYER, container.record.sandbox_id, container.id)
    core.joined.begin(key, lambda: asyncio.to_thread(delete_folder, data))
    reach("container_remove.forgotten")

"""Starts one container: environment, mounts, create, start, postStart hook.

Everything that is a matter of the spec fails as CreateContainerConfigError before the runtime is asked at
all. The files the agent itself mounts, /etc/hosts and the termination log, are made here, in the pod's
directory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from pathlib import Path

from agent.api import errors as api_errors
from agent.api.structs import Container, Pod
from agent.devices.grants import DeviceError
from agent.pods import actions, checkpoint, spec
from agent.pods.env import EnvError, EnvSources, environment, links_of, references
from agent.pods.env_files import EnvFileError, read_file
from agent.pods.executor import Executor, JobFailed
from agent.pods.facts import ContainerFact, State
from agent.pods.hooks import HookFailed, run_hook
from agent.pods.last_words import message_file
from agent.pods.loglinks import add_link
from agent.pods.memory import Memory
from agent.pods.naming import NamingError, host_network_hosts_file, hostname_and_domain, hosts_file
from agent.pods.policies import await_policies
from agent.pods.ports import Ports
from agent.pods.restart import after_start
from agent.pods.runtime import RuntimeFailure
from agent.pods.security import SpecError
from agent.pods.settings import PodSettings
from agent.pods.translate import container_config
from agent.volumes.base import Mount, VolumeError
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)
NODE_HOSTS = Path("/etc/hosts")
_HOSTS = "/etc/hosts"
_NOT_YET = (
    EnvError,
    SpecError,
    NamingError,
    VolumeError,
    DeviceError,
    ValueError,
    api_errors.ApiError,
    OSError,
)
"""Why a container's configuration cannot be made now: what it needs is not there, or not understood."""


async def start_container(
    executor: Executor, pod: Pod, action: actions.StartContainer, memory: Memory
) -> None:
    """StartContainer. Raises JobFailed."""
    container = spec.find_container(pod, action.container)
    if container is None:
        return
    ports, uid = executor.ports, pod.metadata.uid
    if action.exited is not None:
        memory.backoffs[container.name] = after_start(
            memory.backoffs.get(container.name),
            exited=action.exited,
            now=ports.clock.monotonic(),
            maximum=ports.settings.max_restart_delay,
        )
    try:
        config = await _config(executor, pod, container, action, memory)
    except _NOT_YET as exc:
        executor.say(pod, "Warning", "Failed", f"Error: {exc}", container=container.name)
        raise JobFailed("CreateContainerConfigError", str(exc), first=1.0, maximum=5.0) from exc
    box = next((s for s in ports.observer.of(uid).sandboxes if s.id == action.sandbox_id), None)
    sandbox = executor.sandbox_config(pod, box.attempt if box else 0)
    ips = executor.pod_ips(pod, box.ips if box else ())
    await await_policies(executor, pod, ips, container=container.name, early=memory.unconfirmed)
    try:
        container_id = await ports.runtime.create_container(action.sandbox_id, config, sandbox)
    except RuntimeFailure as exc:
        executor.say(pod, "Warning", "Failed", f"Error: {exc}", container=container.name)
        raise JobFailed("CreateContainerError", str(exc), first=1.0, maximum=15.0) from exc
    executor.say(pod, "Normal", "Created", "Container created", container=container.name)
    memory.own.add(container_id)
    post_start = container.lifecycle.post_start if container.lifecycle else None
    if post_start is not None:
        memory.hooking.add(container_id)
    created = ContainerFact(
        id=container_id,
        name=container.name,
        sandbox_id=action.sandbox_id,
        attempt=action.attempt,
        restart_count=action.attempt,
        created_at=ports.clock.now(),
        hash=spec.container_hash(container),
        image=container.image,
    )
    ports.observer.learn(uid, containers=[created])
    try:
        await ports.runtime.start_container(container_id)
    except RuntimeFailure as exc:
        executor.say(pod, "Warning", "Failed", f"Error: {exc}", container=container.name)
        memory.hooking.discard(container_id)
        await executor.refresh(uid, container_id)
        raise JobFailed("RunContainerError", str(exc), first=0.0, maximum=0.0) from exc
    executor.say(pod, "Normal", "Started", "Container started", container=container.name)
    ports.metrics.container_started(pod, container.name)
    memory.images.pop(container.name, None)
    log_path = f"{sandbox.log_directory}/{config.log_path}"
    try:
        add_link(ports.settings, pod, container=container.name, container_id=container_id, log_path=log_path)
    except OSError as exc:
        log.warning("no log link pod=%s error=%s", spec.full_name(pod), exc)
    await executor.refresh(uid, container_id, at_least=State.RUNNING)
    if post_start is not None:
        await _post_start(executor, pod, container, container_id, memory)


async def _post_start(
    executor: Executor, pod: Pod, container: Container, container_id: str, memory: Memory
) -> None:
    assert container.lifecycle is not None and container.lifecycle.post_start is not None
    box = executor.ports.observer.of(pod.metadata.uid).sandbox
    ips = executor.pod_ips(pod, box.ips if box else ())
    try:
        await run_hook(
            container.lifecycle.post_start,
            container=container,
            container_id=container_id,
            pod_ip=ips[0] if ips else "",
            runtime=executor.ports.runtime,
            clock=executor.ports.clock,
        )
    except HookFailed as exc:
        text = f"PostStartHook failed: {exc.how}"
        executor.say(pod, "Warning", "FailedPostStartHook", text, container=container.name)
        memory.condemned[container_id] = actions.Condemned(
            "FailedPostStartHook", float(spec.grace_seconds(pod))
        )
        raise JobFailed("PostStartHookError", str(exc), first=0.0, maximum=0.0) from exc
    finally:
        memory.hooking.discard(container_id)


async def _config(
    executor: Executor, pod: Pod, container: Container, action: actions.StartContainer, memory: Memory
) -> pb.ContainerConfig:
    ports = executor.ports
    observed = ports.observer.of(pod.metadata.uid)
    box = next((s for s in observed.sandboxes if s.id == action.sandbox_id), None)
    ips = executor.pod_ips(pod, box.ips if box else ())
    sources = await _env_sources(ports, pod, container, ips)
    granted = await ports.devices.prepare(pod, container)
    own = environment(pod, container, dataclasses.replace(sources, files=_env_files(container, memory)))
    env = {**granted.envs, **own}
    mounts = list(await ports.volumes.container_mounts(pod, container, memory.prepared, env=env))
    devices = ports.volumes.container_devices(container, memory.prepared)
    taken = {mount.container_path for mount in mounts}
    if _HOSTS not in taken and (ips or pod.spec.host_network):
        mounts.append(_hosts_mount(pod, ports.settings, ips))
    if container.termination_message_path and container.termination_message_path not in taken:
        mounts.append(_message_mount(pod, container, ports.settings, action.attempt))
    target = observed.latest(container.target_container_name) if container.target_container_name else None
    if container.target_container_name and (target is None or target.state is not State.RUNNING):
        raise SpecError(f"unable to find target container {container.target_container_name}")
    config = container_config(
        pod,
        container,
        attempt=action.attempt,
        image=memory.images[container.name],
        env=env,
        mounts=mounts,
        devices=devices,
        settings=ports.settings,
        target_id=target.id if target else "",
        users=ports.users.of(pod),
    )
    granted.apply(config)
    groups = {volume.group for volume in memory.prepared.values() if volume.group is not None}
    config.linux.security_context.supplemental_groups.extend(sorted(groups))
    return config


def _env_files(container: Container, memory: Memory) -> dict[tuple[str, str], str | None]:
    """The files that the container's variables come from. Raises EnvError."""
    found: dict[tuple[str, str], str | None] = {}
    for variable in container.env:
        ref = variable.value_from.file_key_ref if variable.value_from is not None else None
        volume = memory.prepared.get(ref.volume_name) if ref is not None else None
        if ref is None or volume is None or volume.host_path is None:
            continue
        try:
            found[ref.volume_name, ref.path] = read_file(volume.host_path, ref.path)
        except EnvFileError as exc:
            raise EnvError(f"couldn't parse env file: {exc}") from exc
    return found


async def _env_sources(ports: Ports, pod: Pod, container: Container, ips: tuple[str, ...]) -> EnvSources:
    services = ports.services()
    folder = ports.settings.pod_dir(pod.metadata.uid)
    before = checkpoint.kept_variables(folder) if services is None else None
    if services is None and before is None and not spec.is_static(pod):
        raise EnvError("services have not yet been read at least once, cannot construct envvars")
    maps, secrets = references(container)
    namespace = pod.metadata.namespace
    found_maps, found_secrets = await asyncio.gather(
        asyncio.gather(*(ports.sources.get_config_map(namespace, name) for name in maps)),
        asyncio.gather(*(ports.sources.get_secret(namespace, name) for name in secrets)),
    )
    sources = EnvSources(
        config_maps=dict(zip(maps, found_maps, strict=True)),
        secrets=dict(zip(secrets, found_secrets, strict=True)),
        services=services or (),
        service_variables=before,
        pod_ips=ips,
        host_ips=ports.settings.host_ips,
        allocatable=ports.allocatable(),
    )
    if services is not None:
        checkpoint.keep_variables(folder, links_of(pod, sources))
    return sources


def _hosts_mount(pod: Pod, settings: PodSettings, ips: tuple[str, ...]) -> Mount:
    """Write the pod's /etc/hosts (again: its address may be new) and mount it."""
    path = settings.pod_dir(pod.metadata.uid) / "etc-hosts"
    if pod.spec.host_network:
        text = host_network_hosts_file(NODE_HOSTS.read_text(errors="replace"), pod.spec.host_aliases)
    else:
        name, domain = hostname_and_domain(pod, settings.cluster_domain)
        text = hosts_file(ips=ips, hostname=name, domain=domain, aliases=pod.spec.host_aliases)
    _write(path, text.encode(), 0o644)
    return Mount(volume="k8s-managed-etc-hosts", host_path=str(path), container_path=_HOSTS)


def _message_mount(pod: Pod, container: Container, settings: PodSettings, attempt: int) -> Mount:
    path = message_file(settings, pod, container.name, attempt)
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    _write(path, b"", 0o666)  # the application may run as any user
    return Mount(
        volume="termination-log", host_path=str(path), container_path=container.termination_message_path
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write in place, not by rename: running containers have this very file mounted."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, mode)
    try:
        os.fchmod(fd, mode)
        os.write(fd, content)
    finally:
        os.close(fd)

"""projected volumes: several sources in one directory; every pod's
/var/run/secrets/kubernetes.io/serviceaccount.

Sources are fetched concurrently and written as one generation, so the token and the CA certificate beside it
always belong together. In a tmpfs, because there is nearly always a token in it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.volumes import atomic, config_map, downward_api, secret, trust_bundle
from agent.volumes.base import Context, PreparedVolume, Unready

if TYPE_CHECKING:
    from agent.api.structs import (
        Pod,
        PodCertificateProjection,
        ServiceAccountTokenProjection,
        Volume,
        VolumeProjection,
    )


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Write the files of all sources; a later source wins over an earlier one on the same path.

    Raises:
        Unready: any source that is not optional cannot be had.
    """
    source = volume.projected
    if source is None:
        raise Unready("not a projected volume")
    mode = config_map.DEFAULT_MODE if source.default_mode is None else source.default_mode
    parts = await asyncio.gather(*(_collect(context, part, mode) for part in source.sources))
    files = {path: file for part in parts for path, file in part.items()}
    changed = await asyncio.to_thread(secret.write_in_memory, context, files)
    return PreparedVolume(
        name=volume.name, host_path=context.directory, read_only=True, live=True, changed=changed
    )


async def _collect(context: Context, part: VolumeProjection, mode: int) -> dict[str, atomic.File]:
    if part.config_map is not None:
        chosen = part.config_map
        return await config_map.collect(
            context, chosen.name, chosen.items, mode=mode, optional=chosen.optional
        )
    if part.secret is not None:
        wanted = part.secret
        return await secret.collect(context, wanted.name, wanted.items, mode=mode, optional=wanted.optional)
    if part.downward_api is not None:
        items = part.downward_api.items
        return downward_api.collect(context.pod, items, mode=mode, allocatable=context.allocatable)
    if part.service_account_token is not None:
        return await _token(context, part.service_account_token, mode)
    if part.cluster_trust_bundle is not None:
        return await trust_bundle.collect(context, part.cluster_trust_bundle, mode)
    if part.pod_certificate is not None:
        return await _certificate(context, part.pod_certificate, mode)
    raise Unready("projected source of a kind that this node does not support")


async def _token(
    context: Context, projection: ServiceAccountTokenProjection, mode: int
) -> dict[str, atomic.File]:
    """A token's file: readable by the pod's user or fsGroup alone when the pod says who that is."""
    text = await context.tokens.get(context.pod, projection)
    return {atomic.check_path(projection.path): _private(context, atomic.File(text.encode(), mode))}


async def _certificate(
    context: Context, projection: PodCertificateProjection, mode: int
) -> dict[str, atomic.File]:
    """A certificate's files, with the key as private as a token."""
    files = await context.pod_certificates.collect(context.pod, projection, mode=mode)
    return {path: _private(context, file) for path, file in files.items()}


def _private(context: Context, file: atomic.File) -> atomic.File:
    owner = common_user(context.pod)
    mode = file.mode if owner is None and context.fs_group is None else 0o600
    return atomic.File(file.data, mode, owner)


def common_user(pod: Pod) -> int | None:
    """The one user id all containers of a pod run as, or None when they differ or do not say."""
    default = pod.spec.security_context.run_as_user
    users = set()
    for container in (*pod.spec.containers, *pod.spec.init_containers):
        own = None if container.security_context is None else container.security_context.run_as_user
        users.add(default if own is None else own)
    return users.pop() if len(users) == 1 else None

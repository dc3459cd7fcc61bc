"""ConfigMaps, Secrets and tokens for pods, each read once and then followed.

A node may read and watch exactly the objects its pods refer to, one by one (the Node authorizer). The first
question about an object is a plain GET, so that its refusal reaches the pod's events; a watch on that one
object starts beside it, answers later questions, and reports changes, which is what lets volumes follow
within a second.

Source: https://kubernetes.io/docs/reference/access-authn-authz/node/.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from agent.api import errors
from agent.api.authorizer import once_authorized
from agent.api.client import ApiClient
from agent.api.meta import Object, ObjectMeta, OwnerReference
from agent.api.resources import (
    CLUSTER_TRUST_BUNDLES,
    CONFIG_MAPS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    POD_CERTIFICATE_REQUESTS,
    RUNTIME_CLASSES,
    SECRETS,
    SERVICE_ACCOUNTS,
    Resource,
)
from agent.api.structs import (
    ConfigMap,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    Secret,
    TokenRequest,
)
from agent.api.trust import ClusterTrustBundle, PodCertificateRequest, PodCertificateRequestSpec
from agent.api.watch import Informer, Selection

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Object)
Key = tuple[str, str, str]
"""Plural name of the resource, namespace, name."""

_ALL_TRUST_BUNDLES: Key = (CLUSTER_TRUST_BUNDLES.plural, "", "")

SWEEP = 30.0
"""Seconds between two looks for objects no pod refers to any more."""


def live_references(pod: Pod) -> set[Key]:
    """The objects whose changes show in the pod's volumes."""
    namespace = pod.metadata.namespace
    found: set[Key] = set()
    projections = (volume.projected.sources for volume in pod.spec.volumes if volume.projected)
    if any(part.cluster_trust_bundle is not None for parts in projections for part in parts):
        found.add(_ALL_TRUST_BUNDLES)
    for volume in pod.spec.volumes:
        if volume.config_map is not None:
            found.add((CONFIG_MAPS.plural, namespace, volume.config_map.name))
        if volume.secret is not None:
            found.add((SECRETS.plural, namespace, volume.secret.secret_name))
        for source in volume.projected.sources if volume.projected else ():
            if source.config_map is not None:
                found.add((CONFIG_MAPS.plural, namespace, source.config_map.name))
            if source.secret is not None:
                found.add((SECRETS.plural, namespace, source.secret.name))
    return found


class ApiSources:
    """`agent.volumes.base.Sources` over the API. `run()` until cancelled.

    Args:
        pods: the pods of this node, for what is still referred to.
        on_change: called with a pod when an object its volumes show has changed.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        pods: Callable[[], Iterable[Pod]],
        on_change: Callable[[Pod], None],
    ) -> None:
        self._client = client
        self._pods = pods
        self._on_change = on_change
        self._informers: dict[Key, Informer[Object]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._immutable: dict[Key, Object] = {}

    async def run(self) -> None:
        """Drop watches nobody needs, until cancelled; then all of them."""
        try:
            while True:
                await asyncio.sleep(SWEEP)
                self._sweep()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def get_config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """A ConfigMap, None when there is none. Raises ApiError."""
        return await self._get(CONFIG_MAPS, namespace, name)

    async def get_secret(self, namespace: str, name: str) -> Secret | None:
        """A Secret, None when there is none. Raises ApiError."""
        return await self._get(SECRETS, namespace, name)

    async def create_token(self, namespace: str, service_account: str, request: TokenRequest) -> TokenRequest:
        """A bound token. Raises ApiError."""
        return await once_authorized(
            lambda: self._client.create_token(service_account, namespace=namespace, spec=request.spec)
        )

    async def get_claim(self, namespace: str, name: str) -> PersistentVolumeClaim | None:
        """A claim, None when there is none; read anew each time. Raises ApiError."""
        try:
            return await once_authorized(
                lambda: self._client.get(PERSISTENT_VOLUME_CLAIMS, name, namespace=namespace)
            )
        except errors.NotFound:
            return None

    async def get_persistent_volume(self, name: str) -> PersistentVolume | None:
        """A PersistentVolume, None when there is none; read anew each time. Raises ApiError."""
        try:
            return await once_authorized(lambda: self._client.get(PERSISTENT_VOLUMES, name))
        except errors.NotFound:
            return None

    async def runtime_handler(self, name: str) -> str | None:
        """The handler a RuntimeClass names, None when there is no such class. Raises ApiError."""
        try:
            return (await self._client.get(RUNTIME_CLASSES, name)).handler
        except errors.NotFound:
            return None

    async def trust_bundles(self, name: str, *, signer: str, labels: str | None) -> Sequence[str]:
        """PEM texts; see agent.volumes.base.Certificates. Raises ApiError."""
        found: Sequence[ClusterTrustBundle] = ()
        if name:
            found = (await self._client.get(CLUSTER_TRUST_BUNDLES, name),)
        elif labels is not None:
            fields = f"spec.signerName={signer}"
            listed = await self._client.list(
                CLUSTER_TRUST_BUNDLES, label_selector=labels, field_selector=fields
            )
            found = listed.items
        self._follow(_ALL_TRUST_BUNDLES, CLUSTER_TRUST_BUNDLES)
        return [bundle.spec.trust_bundle for bundle in found]

    async def request_certificate(self, pod: Pod, spec: PodCertificateRequestSpec) -> str:
        """Submit a request, with the UIDs that only the API knows; its name. Raises ApiError."""
        namespace = pod.metadata.namespace
        account = await once_authorized(
            lambda: self._client.get(SERVICE_ACCOUNTS, spec.service_account_name, namespace=namespace)
        )
        node = await self._client.get(NODES, spec.node_name)
        spec = msgspec.structs.replace(
            spec, service_account_uid=account.metadata.uid, node_uid=node.metadata.uid
        )
        meta = pod.metadata
        owner = OwnerReference(api_version="v1", kind="Pod", name=meta.name, uid=meta.uid)
        request = PodCertificateRequest(
            metadata=ObjectMeta(
                namespace=namespace,
                generate_name=f"req-{meta.name}-"[:200],
                owner_references=(owner,),  # so that it goes with the pod
            ),
            spec=spec,
        )
        made = await self._client.create(POD_CERTIFICATE_REQUESTS, request, namespace=namespace)
        return made.metadata.name

    async def certificate_request(self, namespace: str, name: str) -> PodCertificateRequest | None:
        """A request, None when it is gone. Raises ApiError."""
        try:
            return await self._client.get(POD_CERTIFICATE_REQUESTS, name, namespace=namespace)
        except errors.NotFound:
            return None

    async def _get(self, resource: Resource[T], namespace: str, name: str) -> T | None:
        key = (resource.plural, namespace, name)
        if key in self._immutable:
            return self._immutable[key]  # type: ignore[return-value]
        informer = self._informers.get(key)
        if informer is not None and informer.synced.is_set():
            return informer.store.get(f"{namespace}/{name}")  # type: ignore[return-value]
        try:
            found = await once_authorized(lambda: self._client.get(resource, name, namespace=namespace))
        except errors.NotFound:
            found = None
        if found is not None and getattr(found, "immutable", False) and self._needed(key):
            self._immutable[key] = found  # it never changes, so a watch would only cost (KEP-1412)
        else:
            self._follow(key, resource)
        return found

    def _needed(self, key: Key) -> bool:
        return any(key in live_references(pod) for pod in self._pods())

    def _follow(self, key: Key, resource: Resource[T]) -> None:
        if key in self._informers or not self._needed(key):
            return
        one = f"metadata.name={key[2]}" if key[2] else ""
        selection = Selection(resource, namespace=key[1], field_selector=one)
        informer = Informer(self._client, selection, lambda old, new: self._changed(key))
        self._informers[key] = informer  # type: ignore[assignment]
        self._tasks[key] = asyncio.create_task(informer.run(), name=f"follow {'/'.join(key)}")

    def _changed(self, key: Key) -> None:
        for pod in self._pods():
            if key in live_references(pod):
                self._on_change(pod)

    def _sweep(self) -> None:
        needed = {key for pod in self._pods() for key in live_references(pod)}
        for key in self._immutable.keys() - needed:
            del self._immutable[key]
        for key in self._informers.keys() - needed:
            self._informers.pop(key)
            self._tasks.pop(key).cancel()

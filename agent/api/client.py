"""The typed API client: verbs on resources, structs in and out.

Every call is one HTTP request with a deadline; retries belong to the caller, who knows whether the call may
be repeated (`errors.Temporary` says when). `Transport` does the HTTP and TLS; tests put a function there.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from agent.api import errors, resources
from agent.api.meta import JSON, ListMeta, Object, Struct
from agent.api.resources import Resource
from agent.api.structs import TokenRequest, TokenRequestSpec
from host.clocks import Clock, SystemClock

T = TypeVar("T", bound=Object)
REQUEST_TIMEOUT = 30.0
"""Seconds for one request other than a watch."""

LIST_PAGE = 500
"""Objects per page of a list, as client-go's pager asks for."""


class PatchKind(enum.Enum):
    """The three patch formats a node needs; the value is the media type."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"


class Transport(Protocol):
    """HTTP to one API server. Errors are `agent.api.errors` only."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_TIMEOUT,
    ) -> bytes:
        """The response body of a 2xx answer. Raises `ApiError`."""

    def stream(self, path: str, *, query: Mapping[str, str], idle_timeout: float) -> AsyncIterator[bytes]:
        """Lines of a GET that stays open. Ends when the server ends it; raises `ApiError`, and `Unreachable`
        when nothing came for `idle_timeout` seconds (armed anew by every chunk)."""

    async def close(self) -> None:
        """Close every connection."""


class _List(Struct, Generic[T], frozen=True, kw_only=True):
    metadata: ListMeta = ListMeta()
    items: tuple[T, ...] | None = ()


@dataclasses.dataclass(frozen=True)
class Listed(Generic[T]):
    """A complete list and the resourceVersion a watch continues from."""

    items: tuple[T, ...]
    resource_version: str


class ApiClient:
    """Typed verbs over a transport. Immutable apart from the decoders it has compiled so far.

    Methods raise `errors.ApiError` subclasses, `errors.Permanent` when an answer cannot be decoded.
    """

    def __init__(self, transport: Transport, *, clock: Clock | None = None) -> None:
        self.transport = transport
        self.clock: Clock = clock or SystemClock()
        """For the pauses of those who retry (watches)."""
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
        self._encoder = msgspec.json.Encoder()

    async def get(self, resource: Resource[T], name: str, *, namespace: str = "") -> T:
        """Read one object."""
        path = resource.path(namespace=namespace, name=name)
        return self._decode(resource.type, await self.transport.request("GET", path), path)

    async def list(
        self,
        resource: Resource[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        page: int = LIST_PAGE,
    ) -> Listed[T]:
        """Read all objects, page by page; a page that expired (410) starts the list again without pages.

        Never returns part of a list: any failure raises.
        """
        try:
            return await self._list(resource, namespace, label_selector, field_selector, page)
        except errors.Gone:
            return await self._list(resource, namespace, label_selector, field_selector, 0)

    async def _list(
        self, resource: Resource[T], namespace: str, labels: str, fields: str, page: int
    ) -> Listed[T]:
        path = resource.path(namespace=namespace)
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(page) if page else ""}
        items: list[T] = []
        while True:
            asked = {key: value for key, value in query.items() if value}
            raw = await self.transport.request("GET", path, query=asked)
            answer: _List[T] = self._decode(_List[resource.type], raw, path)  # type: ignore[name-defined]
            items += answer.items or ()
            if not answer.metadata.continue_:
                return Listed(tuple(items), answer.metadata.resource_version)
            query["continue"] = answer.metadata.continue_

    async def create(self, resource: Resource[T], obj: T, *, namespace: str = "") -> T:
        """Create an object; its own namespace is used when none is given. Raises `AlreadyExists`."""
        path = resource.path(namespace=namespace or obj.metadata.namespace)
        return await self._write("POST", resource, path, self._encode(resource, obj))

    async def update(self, resource: Resource[T], obj: T, *, subresource: str = "") -> T:
        """Replace an object; raises `Conflict` when its resourceVersion is not the newest."""
        meta = obj.metadata
        path = resource.path(namespace=meta.namespace, name=meta.name, subresource=subresource)
        return await self._write("PUT", resource, path, self._encode(resource, obj))

    async def patch(
        self,
        resource: Resource[T],
        name: str,
        body: JSON,
        *,
        namespace: str = "",
        subresource: str = "",
        kind: PatchKind = PatchKind.STRATEGIC,
    ) -> T:
        """Change the fields in `body`. Put `metadata.uid` in it to refuse a namesake."""
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        return await self._write("PATCH", resource, path, self._encoder.encode(body), kind.value)

    async def delete(
        self,
        resource: Resource[T],
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        grace_period_seconds: int | None = None,
    ) -> None:
        """Delete an object; with `uid`, a namesake with another uid raises `Conflict`."""
        options: dict[str, JSON] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if uid:
            options["preconditions"] = {"uid": uid}
        path = resource.path(namespace=namespace, name=name)
        await self.transport.request("DELETE", path, body=self._encoder.encode(options))

    async def create_token(
        self, service_account: str, *, namespace: str, spec: TokenRequestSpec
    ) -> TokenRequest:
        """A bound service account token (TokenRequest API)."""
        path = resources.SERVICE_ACCOUNTS.path(namespace=namespace, name=service_account, subresource="token")
        request = self._encode(resources.TOKEN_REQUESTS, TokenRequest(spec=spec))
        return await self._write("POST", resources.TOKEN_REQUESTS, path, request)

    async def close(self) -> None:
        """Close the transport."""
        await self.transport.close()

    async def _write(
        self,
        method: str,
        resource: Resource[T],
        path: str,
        body: bytes,
        content_type: str = "application/json",
    ) -> T:
        raw = await self.transport.request(method, path, body=body, content_type=content_type)
        return self._decode(resource.type, raw, path)

    def _encode(self, resource: Resource[T], obj: T) -> bytes:
        typed = msgspec.structs.replace(obj, api_version=resource.api_version, kind=resource.kind)
        return self._encoder.encode(typed)

    def _decode(self, kind: Any, raw: bytes, path: str) -> Any:
        decoder = self._decoders.get(kind)
        if decoder is None:
            decoder = self._decoders[kind] = msgspec.json.Decoder(kind)
        try:
            return decoder.decode(raw)
        except (msgspec.MsgspecError, RecursionError) as exc:
            raise errors.Permanent(f"{path}: the answer does not have the expected form: {exc}") from exc

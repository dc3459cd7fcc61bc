"""A client for OCI registries: manifests and blobs, verified, with credentials kept where they belong.

One `Fetcher` serves one pull: it knows the servers to ask (`cri.images.hosts`), tries them in order and
remembers tokens for its lifetime. Authorization is bound to scheme, host and port: a redirect elsewhere
travels without it, never from https to http, never to a link-local address. Addresses in messages carry no
query and no user, because signed download links are secrets.
Source: OCI distribution-spec v1.1, "Pull".
"""

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from cri.images import challenge, manifest
from cri.images.blobs import BlobWriter
from cri.images.errors import (
    AccessDenied,
    CorruptContent,
    ImageNotFound,
    PullError,
    RegistryUnavailable,
)
from cri.images.hosts import Endpoint
from cri.images.manifest import Descriptor, FetchedManifest
from cri.images.model import Credentials
from cri.images.reference import Reference, is_digest

T = TypeVar("T")

_MAX_REDIRECTS = 10
_MAX_ATTEMPTS = 5
_MAX_ERROR_BODY = 16 << 10
_MAX_TOKEN_BODY = 256 << 10
_BATCH = 1 << 20
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_CONNECT_TIMEOUT = 30.0


def new_session(progress_timeout: float) -> aiohttp.ClientSession:
    """A client session; must be closed. `progress_timeout` bounds the silence between two reads."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT, connect=_CONNECT_TIMEOUT, sock_read=progress_timeout
    )
    return aiohttp.ClientSession(
        timeout=timeout,
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=32 << 10,
        max_field_size=32 << 10,
        read_bufsize=1 << 18,
        headers={"Accept-Encoding": "identity", "User-Agent": "nodelet-cri"},
    )


class Fetcher:
    """Fetches the content of one image from the first server that has it."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        ref: Reference,
        *,
        endpoints: tuple[Endpoint, ...],
        credentials: Credentials | None = None,
    ) -> None:
        self._session = session
        self._ref = ref
        self._endpoints = endpoints
        self._credentials = credentials
        self._tokens: dict[str, str] = {}
        self._tls: dict[str, ssl.SSLContext | bool] = {}

    async def manifest(self, selector: str) -> FetchedManifest:
        """Fetch a manifest or index by tag or digest; PullError."""
        by_tag = not is_digest(selector)
        needed = "resolve" if by_tag else "pull"
        return await self._first(needed, lambda server: self._manifest_from(server, selector))

    async def blob(self, descriptor: Descriptor, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """Fetch a blob into `writer` and commit it; `on_bytes` gets the length of each piece.

        A connection that breaks is resumed where it broke, as long as it had made progress; so is what an
        earlier pull or another server left. When that turns out wrong, it is fetched from its beginning.
        """

        async def fetch(server: Endpoint) -> None:
            inherited = writer.count
            try:
                await self._blob_from(server, descriptor, writer, on_bytes)
            except CorruptContent:
                await _restart(writer, on_bytes)
                if not inherited:
                    raise
                await self._blob_from(server, descriptor, writer, on_bytes)

        await self._first("pull", fetch)

    async def _first(self, needed: str, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first server's answer; when all fail, the last failure with those before it."""
        failures: list[PullError] = []
        for server in self._endpoints:
            if needed not in server.capabilities:
                continue
            try:
                return await attempt(server)
            except PullError as exc:
                failures.append(exc)
        if not failures:
            raise RegistryUnavailable(f"no configured server of {self._ref.domain} may be asked to {needed}")
        if len(failures) == 1:
            raise failures[0]
        decisive = failures[-1]
        before = [str(failure) for failure in failures[:-1] if str(failure) != str(decisive)]
        message = "; ".join([str(decisive), *(f"before that: {text}" for text in before)])
        raise type(decisive)(message) from decisive

    async def _manifest_from(self, server: Endpoint, selector: str) -> FetchedManifest:
        url = self._url(server, "manifests", selector)
        async with self._get(server, url, {"Accept": manifest.ACCEPT}) as response:
            await self._expect(response, (200,), f"manifest {selector}")
            data = await _read_capped(response, manifest.MAX_MANIFEST_BYTES, f"manifest {selector}")
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if is_digest(selector) and digest != selector:
            raise CorruptContent(f"manifest {selector} from {server.netloc} has digest {digest}")
        return FetchedManifest(data=data, media_type=media_type, digest=digest)

    async def _blob_from(
        self,
        server: Endpoint,
        descriptor: Descriptor,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
    ) -> None:
        for attempt in range(_MAX_ATTEMPTS):
            before = writer.count
            try:
                if before < descriptor.size or not before:  # all of it may have been there
                    await self._blob_rest(server, descriptor, writer, on_bytes)
                await asyncio.to_thread(writer.commit)
                return
            except RegistryUnavailable:
                if writer.count == before or attempt == _MAX_ATTEMPTS - 1:
                    raise
        raise RegistryUnavailable(f"blob {descriptor.digest}: gave up")

    async def _blob_rest(
        self,
        server: Endpoint,
        descriptor: Descriptor,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
    ) -> None:
        url = self._url(server, "blobs", descriptor.digest)
        what = f"blob {descriptor.digest}"
        headers = {"Range": f"bytes={writer.count}-"} if writer.count else {}
        async with self._get(server, url, headers) as response:
            if response.status == 416:
                await _restart(writer, on_bytes)
                raise RegistryUnavailable(f"{what}: {server.netloc} cannot resume")
            await self._expect(response, (200, 206), what)
            if writer.count and not _continues(response, writer.count):
                await _restart(writer, on_bytes)
            batch = bytearray()
            try:
                with _client_errors(what, server.netloc):
                    async for piece in response.content.iter_any():
                        batch += piece
                        on_bytes(len(piece))
                        if len(batch) >= _BATCH:
                            await asyncio.to_thread(writer.write, bytes(batch))
                            batch.clear()
            except RegistryUnavailable:
                await asyncio.to_thread(writer.write, bytes(batch))  # so that the next try starts behind it
                raise
            await asyncio.to_thread(writer.write, bytes(batch))

    @asynccontextmanager
    async def _get(
        self, server: Endpoint, url: URL, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET with authentication; the response may have any status but 401."""
        authorization = self._tokens.get(server.origin) or self._first_authorization(server)
        async with self._follow(server, url, headers, authorization) as response:
            if response.status != 401:
                yield response
                return
            offered = challenge.parse_challenges(", ".join(response.headers.getall("WWW-Authenticate", [])))
            reason = await _reason(response)
        authorization = await self._authorize(server, offered, reason)
        self._tokens[server.origin] = authorization
        async with self._follow(server, url, headers, authorization) as response:
            if response.status == 401:
                del self._tokens[server.origin]
                raise AccessDenied(
                    _joined(f"{self._ref}: {server.netloc} refused the credentials", await _reason(response))
                )
            yield response

    @asynccontextmanager
    async def _follow(
        self, server: Endpoint, url: URL, headers: Mapping[str, str], authorization: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        origin = url.origin()
        for _ in range(_MAX_REDIRECTS):
            sent = dict(headers)
            if url.origin() == origin:
                sent.update(server.headers)
                if authorization:
                    sent["Authorization"] = authorization
            tls = self._context(server) if url.origin() == origin else True
            with _client_errors(str(self._ref), url.authority):
                response = await self._session.get(url, headers=sent, allow_redirects=False, ssl=tls)
            try:
                if response.status not in _REDIRECTS:
                    yield response
                    return
                url = redirect_target(url, response.headers.get("Location", ""))
            finally:
                response.release()
        raise RegistryUnavailable(f"{self._ref}: {server.netloc} redirects in circles")

    def _context(self, server: Endpoint) -> ssl.SSLContext | bool:
        if server.origin not in self._tls:
            self._tls[server.origin] = server.ssl_context() or True
        return self._tls[server.origin]

    def _own_credentials(self, server: Endpoint) -> Credentials | None:
        credentials = self._credentials
        if credentials and challenge.applies(credentials, server.netloc, self._ref.domain):
            return credentials
        return None

    def _first_authorization(self, server: Endpoint) -> str:
        credentials = self._own_credentials(server)
        return f"Bearer {credentials.registry_token}" if credentials and credentials.registry_token else ""

    async def _authorize(
        self, server: Endpoint, offered: tuple[challenge.Challenge, ...], reason: str
    ) -> str:
        credentials = self._own_credentials(server)
        by_scheme = {item.scheme: item for item in reversed(offered)}
        if bearer := by_scheme.get("bearer"):
            return "Bearer " + await self._token(server, bearer, credentials)
        authorization = challenge.basic(credentials) if "basic" in by_scheme else ""
        if not authorization:
            raise AccessDenied(_joined(f"{self._ref}: {server.netloc} wants credentials (401)", reason))
        return authorization

    async def _token(
        self, server: Endpoint, bearer: challenge.Challenge, credentials: Credentials | None
    ) -> str:
        address = challenge.token_url(bearer, registry_scheme=server.scheme, repository=self._ref.path)
        url = URL(address, encoded=True)
        tls = self._context(server) if str(url.origin()) == server.origin else True
        what = f"{self._ref}: token service {url.authority}"
        with _client_errors(what, url.authority):
            if credentials and credentials.identity_token:
                bare = url.with_query(None)
                form = {**url.query, "grant_type": "refresh_token", "client_id": "nodelet-cri"}
                form["refresh_token"] = credentials.identity_token
                request = self._session.post(bare, data=form, allow_redirects=False, ssl=tls)
            else:
                authorization = challenge.basic(credentials)
                headers = {"Authorization": authorization} if authorization else {}
                request = self._session.get(url, headers=headers, allow_redirects=False, ssl=tls)
            async with request as response:
                if response.status in (400, 401, 403):
                    raise AccessDenied(_joined(f"{what} refused the credentials", await _reason(response)))
                if response.status != 200:
                    raise RegistryUnavailable(f"{what} answered {response.status}")
                data = await _read_capped(response, _MAX_TOKEN_BODY, what)
        return challenge.parse_token(data)

    def _url(self, server: Endpoint, kind: str, selector: str) -> URL:
        path = f"{server.path}/{self._ref.path}/{kind}/{quote(selector, safe=':')}"
        query = "?" + urlencode({"ns": self._ref.domain}) if server.mirror else ""
        return URL(f"{server.origin}{path}{query}", encoded=True)

    async def _expect(self, response: aiohttp.ClientResponse, good: tuple[int, ...], what: str) -> None:
        if response.status in good:
            return
        where = f"{self._ref}: {what}"
        reason = await _reason(response)
        host = response.url.authority
        if response.status == 404:
            raise ImageNotFound(_joined(f"{where}: not found at {host}", reason))
        if response.status == 403:
            raise AccessDenied(_joined(f"{where}: access denied by {host} (403)", reason))
        raise RegistryUnavailable(_joined(f"{where}: {host} answered {response.status}", reason))


class _client_errors:
    """Turns aiohttp's errors into ours, with text that cannot hold an address."""

    def __init__(self, what: str, host: str) -> None:
        self._where = f"{what}: {host}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, aiohttp.ClientError | TimeoutError | ValueError) or (
            isinstance(exc, OSError) and not isinstance(exc, PullError)
        ):
            raise RegistryUnavailable(f"{self._where}: {_describe(exc)}") from None


def _describe(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"certificate not accepted: {_certificate_reason(exc.certificate_error)}"
    if isinstance(exc, aiohttp.ClientSSLError):
        return "no TLS connection"
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"cannot connect: {exc.os_error.strerror or 'no such host'}".lower()
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ConnectionError):
        return "connection broke"
    return f"malformed answer ({type(exc).__name__})"


def _certificate_reason(exc: Exception) -> str:
    return getattr(exc, "verify_message", "") or type(exc).__name__


def redirect_target(url: URL, location: str) -> URL:
    """Where a redirect leads; RegistryUnavailable when it is no place to go."""
    try:
        target = url.join(URL(location, encoded=True))
        host = target.host or ""
    except ValueError:
        raise RegistryUnavailable(f"{url.authority} redirects to a malformed address") from None
    if not location or target.scheme not in ("http", "https") or target.user is not None:
        raise RegistryUnavailable(f"{url.authority} redirects to a malformed address")
    if url.scheme == "https" and target.scheme != "https":
        raise RegistryUnavailable(f"{url.authority} redirects from https to http")
    if challenge.is_link_local(host):
        raise RegistryUnavailable(f"{url.authority} redirects to a link-local address")
    return target.with_fragment(None)


async def _restart(writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
    on_bytes(-writer.count)
    await asyncio.to_thread(writer.restart)


def _continues(response: aiohttp.ClientResponse, offset: int) -> bool:
    start = response.headers.get("Content-Range", "").partition("-")[0]
    return response.status == 206 and start.split() == ["bytes", str(offset)]


async def _read_capped(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    data = bytearray()
    with _client_errors(what, response.url.authority):
        async for piece in response.content.iter_any():
            data += piece
            if len(data) > limit:
                raise CorruptContent(f"{what} is larger than {limit} bytes")
    return bytes(data)


async def _reason(response: aiohttp.ClientResponse) -> str:
    """What the registry says went wrong, as one printable line."""
    data = bytearray()
    try:
        async for piece in response.content.iter_any():
            data += piece
            if len(data) > _MAX_ERROR_BODY:
                return ""
        first = json.loads(data)["errors"][0]
        text = first.get("message") or first.get("code")
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    except AttributeError:
        return ""
    if not isinstance(text, str) or "://" in text:
        return ""
    return "".join(char if char.isprintable() else " " for char in text[:300]).strip()


def _joined(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text

"""HTTP and TLS to the API server, on aiohttp.

One session, as many connections as there are watches plus a few warm ones for writes. The credential files
are looked at again before requests (at most every few seconds), so that a rotated certificate is used without
a restart: new connections then carry it, old ones run out. This is the only module that sees aiohttp's client
exceptions.

Not for retries (the caller's), and not for anything but the API server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp
import msgspec

from agent.api import errors
from agent.api.client import REQUEST_TIMEOUT
from agent.api.kubeconfig import Access
from agent.api.meta import Status
from host.errors import InputError

log = logging.getLogger(__name__)
CHECK_INTERVAL = 5.0
"""Seconds between two looks at the credential files."""

CONNECT_TIMEOUT = 10.0
MAX_LINE = 32 << 20
"""Bytes of one watch line; an object in etcd is at most 1.5 MiB by default."""

Signature = tuple[tuple[int, int, int], ...]


def tls_context(access: Access) -> ssl.SSLContext:
    """TLS 1.2 or newer, the kubeconfig's CA only, its client certificate if it has one.

    Raises:
        InputError: a certificate or key cannot be read; the message names the file and the kubeconfig.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    where = f"kubeconfig {access.source}"
    try:
        if access.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif access.ca_data:
            context.load_verify_locations(cadata=access.ca_data.decode("ascii", "replace"))
        elif access.ca_file:
            context.load_verify_locations(cafile=access.ca_file)
        else:
            context.load_default_certs()
    except (ssl.SSLError, OSError) as exc:
        subject = access.ca_file or "certificate-authority-data"
        raise InputError(f"{where}: no usable CA certificate in {subject}: {exc}") from exc
    if access.cert_data or access.cert_file:
        try:
            with (
                _as_file(access.cert_data, access.cert_file) as cert,
                _as_file(access.key_data, access.key_file) as key,
            ):
                context.load_cert_chain(cert, key or None)
        except (ssl.SSLError, OSError) as exc:
            subject = access.cert_file or "client-certificate-data"
            raise InputError(f"{where}: client certificate {subject} cannot be used: {exc}") from exc
    return context


@contextlib.contextmanager
def _as_file(data: bytes, path: os.PathLike[str] | None) -> Iterator[str]:
    """A file name for PEM data: OpenSSL's Python binding reads only files, so data goes through a memfd."""
    if not data:
        yield str(path) if path else ""
        return
    fd = os.memfd_create("nodelet-pem", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


class HttpTransport:
    """The `agent.api.client.Transport` of real life. Make it inside a running event loop."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._checked = time.monotonic()
        self._signature = self._sign()
        self._away_since: float | None = None
        self._tls = tls_context(access)
        if access.insecure:
            log.warning("TLS verification is off kubeconfig=%s field=insecure-skip-tls-verify", access.source)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=90.0),
            headers={"Accept": "application/json", "User-Agent": "nodelet/0.1.0 (kubelet)"},
            auto_decompress=True,
        )

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
        headers = self._headers()
        if body is not None:
            headers["Content-Type"] = content_type
        what = f"{method.lower()} {path}"
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        with self._typed_errors(what):
            async with self._session.request(
                method,
                self._access.server + path,
                params=query,
                data=body,
                headers=headers,
                timeout=limits,
                ssl=self._context(),
                server_hostname=self._access.tls_server_name or None,
                allow_redirects=False,
            ) as response:
                self._found()
                raw = await response.read()
                if response.status >= 300:
                    raise _failure(response, raw, what)
                return raw

    async def stream(
        self, path: str, *, query: Mapping[str, str], idle_timeout: float
    ) -> AsyncIterator[bytes]:
        what = f"watch {path}"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=idle_timeout)
        with self._typed_errors(what):
            async with self._session.get(
                self._access.server + path,
                params=query,
                headers=self._headers(),
                timeout=limits,
                ssl=self._context(),
                server_hostname=self._access.tls_server_name or None,
                allow_redirects=False,
            ) as response:
                self._found()
                if response.status >= 300:
                    raise _failure(response, await response.read(), what)
                pending = b""
                async for chunk in response.content.iter_any():
                    *lines, pending = (pending + chunk).split(b"\n")
                    if len(pending) > MAX_LINE:
                        raise errors.Temporary(f"{what}: line longer than {MAX_LINE} bytes")
                    for line in lines:
                        yield line

    async def close(self) -> None:
        await self._session.close()

    def _headers(self) -> dict[str, str]:
        token = self._access.token
        if self._access.token_file is not None:
            try:
                token = self._access.token_file.read_text().strip()
            except OSError as exc:
                raise errors.Temporary(f"token file {self._access.token_file}: {exc.strerror}") from exc
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _context(self) -> ssl.SSLContext:
        """The TLS context, made anew when a credential file changed; a half-written one keeps the old."""
        now = time.monotonic()
        if now - self._checked >= CHECK_INTERVAL:
            self._checked = now
            signature = self._sign()
            if signature != self._signature:
                try:
                    self._tls = tls_context(self._access)
                    self._signature = signature
                    log.info("credentials reloaded kubeconfig=%s", self._access.source)
                except InputError as exc:
                    log.warning("credentials not reloaded, keeping the old ones error=%s", exc)
        return self._tls

    def _sign(self) -> Signature:
        stats = []
        for path in self._access.files():
            with contextlib.suppress(OSError):
                info = path.stat()
                stats.append((info.st_ino, info.st_mtime_ns, info.st_size))
        return tuple(stats)

    @contextlib.contextmanager
    def _typed_errors(self, what: str) -> Iterator[None]:
        server = self._access.server
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as exc:
            fault = getattr(exc.certificate_error, "verify_message", "") or str(exc.certificate_error)
            origin = f"the CA in {self._access.source}" if self._access.source else "the CA"
            text = f"{server} shows a certificate that does not pass the check with {origin}: {fault}"
            raise errors.Unreachable(text, reason="BadCertificate") from exc
        except TimeoutError as exc:
            raise self._lost(f"{what}: {server} did not answer in time") from exc
        except aiohttp.ClientConnectorError as exc:
            reason = (exc.os_error.strerror or str(exc.os_error)).lower()
            raise self._lost(f"{what}: cannot connect to {server}: {reason}") from exc
        except (aiohttp.ClientError, OSError) as exc:
            detail = str(exc) or type(exc).__name__
            raise self._lost(f"{what}: connection to {server} broke: {detail}") from exc

    def _lost(self, text: str) -> errors.Unreachable:
        """The error for a request without an answer; the first one in a row is logged."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("API server does not answer, trying on error=%s", text)
        return errors.Unreachable(text)

    def _found(self) -> None:
        if self._away_since is not None:
            away = time.monotonic() - self._away_since
            self._away_since = None
            log.info("API server answers again server=%s after=%.1fs", self._access.server, away)


def _failure(response: aiohttp.ClientResponse, raw: bytes, what: str) -> errors.ApiError:
    try:
        status = msgspec.json.decode(raw, type=Status)
    except msgspec.MsgspecError:
        status = Status(message=raw[:200].decode("utf-8", "replace").strip())
    after = response.headers.get("Retry-After", "")
    return errors.from_status(
        response.status, status, what=what, retry_after=float(after) if after.isdigit() else 0.0
    )

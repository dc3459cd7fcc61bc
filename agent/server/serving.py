"""The certificate that port 10250 shows, and its renewal.

Three kinds: configured files; a self-signed one (`certificates`); with serverTLSBootstrap one that the
cluster signs (kubernetes.io/kubelet-serving), which somebody has to approve. Until then the self-signed one
is shown, and the log says which command approves. A new certificate is put into the living TLS context, so
that it counts from the next handshake on and no connection is cut.

Source: https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/ (certificate
rotation).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

from agent.api import certificates as requests
from agent.api.certificates import SERVING_SIGNER, Denied, Wanted
from agent.api.client import ApiClient
from agent.api.errors import ApiError
from agent.server import certificates
from agent.server.certificates import Pair
from host.clocks import Clock

log = logging.getLogger(__name__)
PREFIX = "kubelet-server"
RETRY = 60.0


class ServingCertificate:
    """Makes the TLS context once (`context`, blocking) and renews the signed certificate (`run`).

    Args:
        client: None: never ask the cluster.
        configured: files from the configuration, which win over everything else.
        client_ca: who may sign client certificates.
    """

    def __init__(
        self,
        client: ApiClient | None,
        *,
        node_name: str,
        ips: Sequence[str],
        pki: Path,
        configured: Pair | None,
        client_ca: Path | None,
        clock: Clock,
    ) -> None:
        self._client = client if configured is None else None
        self._wanted = Wanted(
            signer=SERVING_SIGNER, node_name=node_name, hostnames=(node_name,), ips=tuple(ips)
        )
        self._pki = pki
        self._configured = configured
        self._client_ca = client_ca
        self._clock = clock
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The context of the port. Raises InputError when configured files cannot be used."""
        wanted = self._wanted
        pair = self._configured or self._signed()
        if pair is None:
            pair = certificates.ensure_self_signed(self._pki, hostname=wanted.node_name, ips=wanted.ips)
        self._context = certificates.server_context(pair, client_ca=self._client_ca)
        return self._context

    def _signed(self) -> Pair | None:
        """The certificate the cluster signed before, if it still fits."""
        current = self._pki / f"{PREFIX}-current.pem"
        pair = Pair(current, current)
        wanted = self._wanted
        if self._client is None or not certificates.usable(pair, wanted.node_name, wanted.ips):
            return None
        return pair

    async def run(self) -> None:
        """Ask for a certificate, and for the next one in time, until cancelled."""
        client = self._client
        if client is None:
            return
        while True:
            pair = await asyncio.to_thread(self._signed)
            if pair is not None and self._context is not None:
                start, end = requests.expiry(pair.cert.read_bytes())
                await self._clock.sleep(requests.due(start, end) - self._clock.now())
            try:
                key, request = await asyncio.to_thread(requests.new_request, self._wanted)
                chain = await requests.obtain(client, self._wanted, request)
            except (ApiError, Denied) as exc:
                log.warning("serving certificate not signed error=%s", exc)
                await self._clock.sleep(RETRY)
                continue
            link = requests.store(self._pki, chain, key, prefix=PREFIX, now=self._clock.now())
            if self._context is not None:
                self._context.load_cert_chain(link)
            log.info("serving certificate in use file=%s", link)

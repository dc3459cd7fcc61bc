"""From a bootstrap token to credentials of our own, and new ones before they expire.

Files as kubelet keeps them, so that kubeadm finds them: `<pki>/kubelet-client-current.pem` is a link to the
newest `kubelet-client-<date>.pem` (certificate and key in one file, 0600), and the kubeconfig names the link.
The key never leaves the machine, and is written before the kubeconfig that needs it.

Source: https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from agent.api import certificates, kubeconfig
from agent.api.certificates import CLIENT_SIGNER, Wanted
from agent.api.client import ApiClient
from agent.api.errors import ApiError
from agent.api.transport import HttpTransport
from agent.preflight import refuse_stranger
from host.clocks import Clock
from host.errors import InputError
from host.files import write_atomic

log = logging.getLogger(__name__)
PREFIX = "kubelet-client"
"""Of the files' names, which kubeadm knows."""

RETRY = 5.0
RENEW_RETRY = 60.0


def needed(path: Path, *, now: float) -> str:
    """Why the kubeconfig at `path` cannot be used ("" when it can): missing, or its certificate has
    expired."""
    if not path.exists():
        return "there is no kubeconfig yet"
    access = kubeconfig.load(path)
    if access.cert_file is None:
        return ""
    try:
        _, until = certificates.expiry(access.cert_file.read_bytes())
    except (OSError, ValueError) as exc:
        return f"client certificate {access.cert_file} cannot be used: {exc}"
    return f"client certificate {access.cert_file} has expired" if until <= now else ""


async def bootstrap(*, bootstrap_file: Path, target: Path, pki: Path, node_name: str) -> None:
    """Get a client certificate with the bootstrap credentials and write the kubeconfig; retries until it can.

    Raises:
        InputError: the bootstrap kubeconfig cannot be used, or the request was denied.
    """
    access = kubeconfig.load(bootstrap_file)
    transport = HttpTransport(access)
    client = ApiClient(transport)
    wanted = Wanted(signer=CLIENT_SIGNER, node_name=node_name)
    try:
        while True:
            try:
                key, request = await asyncio.to_thread(certificates.new_request, wanted)
                chain = await certificates.obtain(client, wanted, request)
                break
            except ApiError as exc:
                refuse_stranger(exc)
                log.warning("bootstrap waits server=%s error=%s", access.server, exc)
                await asyncio.sleep(RETRY)
            except certificates.Denied as exc:
                raise InputError(str(exc)) from exc
    finally:
        await transport.close()
    pem = certificates.store(pki, chain, key, prefix=PREFIX, now=time.time())
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(target, kubeconfig.render(access, cert_file=pem, key_file=pem), mode=0o600)
    log.info("bootstrap done kubeconfig=%s certificate=%s", target, pem)


class Rotation:
    """Renews the client certificate when 70 to 90 % of its life have passed. `run()` until cancelled."""

    def __init__(self, client: ApiClient, *, node_name: str, cert_file: Path, clock: Clock) -> None:
        self._client = client
        self._wanted = Wanted(signer=CLIENT_SIGNER, node_name=node_name)
        self._file = cert_file
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                start, end = certificates.expiry(self._file.read_bytes())
            except (OSError, ValueError) as exc:
                log.warning("client certificate not readable file=%s error=%s", self._file, exc)
                await self._clock.sleep(RENEW_RETRY)
                continue
            await self._clock.sleep(certificates.due(start, end) - self._clock.now())
            await self._renew()

    async def _renew(self) -> None:
        try:
            key, request = await asyncio.to_thread(certificates.new_request, self._wanted)
            chain = await certificates.obtain(self._client, self._wanted, request)
            certificates.store(self._file.parent, chain, key, prefix=PREFIX, now=self._clock.now())
            log.info("client certificate renewed file=%s", self._file)
        except (ApiError, certificates.Denied) as exc:
            log.warning("client certificate not renewed error=%s", exc)
            await self._clock.sleep(RENEW_RETRY)

"""The node's resolvers, looked up for every pod: a network manager writes them anew when it likes.

Source: pkg/kubelet/network/dns/dns.go (v1.37).
"""

from __future__ import annotations

import logging
from pathlib import Path

from agent.pods.naming import Dns, only_stub, parse_resolv_conf
from host.errors import InputError

log = logging.getLogger(__name__)
RESOLVED = Path("/run/systemd/resolve/resolv.conf")
"""Where systemd-resolved writes the servers behind its stub (systemd-resolved.service(8))."""


class NodeDns:
    """The resolvers in a file, as pods may use them.

    Args:
        path: KubeletConfiguration's resolvConf; empty for no resolvers.
        resolved: what to use in place of systemd-resolved's stub, which only this machine can reach.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: str, *, resolved: Path = RESOLVED) -> None:
        self._path = path
        self._resolved = resolved
        self._known = self._read()

    def __call__(self) -> Dns:
        """What the file says now; what it said before, where it cannot be read."""
        try:
            found = self._read()
        except InputError as exc:
            log.warning("%s; pods get what it said before", exc)
            return self._known
        if found != self._known:
            log.info("the node's resolvers have changed path=%s servers=%s", self._path, found.servers)
        self._known = found
        return found

    def _read(self) -> Dns:
        if not self._path:
            return Dns()
        try:
            found = parse_resolv_conf(Path(self._path).read_text(errors="replace"))
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            fix = 'name another file, or set resolvConf: ""'
            raise InputError(f"resolvConf {self._path} cannot be read: {reason}: {fix}") from exc
        behind = self._behind_stub() if only_stub(found) else Dns()
        return behind if behind.servers and not only_stub(behind) else found

    def _behind_stub(self) -> Dns:
        try:
            return parse_resolv_conf(self._resolved.read_text(errors="replace"))
        except OSError:
            return Dns()

"""What is looked at before anything is made: rights, kernel, ports, and the API server's certificate.

A wrong setting or machine ends the program with one line; what may come right by itself (no route yet, an API
server that is away) does not belong here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api import kubeconfig
from agent.api.errors import ApiError
from agent.config.load import Settings
from agent.server.listening import check_free
from host import processes
from host.errors import InputError

if TYPE_CHECKING:
    from agent.api.client import Transport

GREETING_SECONDS = 2.0


def check_machine(settings: Settings, *, proc: Path = Path("/proc"), cgroups: Path | None = None) -> None:
    """Find what would make every later step fail; make the folders for state.

    Args:
        proc: the proc file system.
        cgroups: where the hierarchies are mounted (/sys/fs/cgroup).

    Raises:
        InputError: with the fix.
    """
    if os.geteuid() != 0:
        raise InputError("must run as root: a node makes namespaces, mounts and cgroups (try sudo)")
    _check_credentials(settings)  # before ports: beside a running agent, this is the mistake
    _check_kernel(settings, proc, cgroups or Path("/sys/fs/cgroup"))
    _check_programs(settings)
    kubelet, manifests = settings.kubelet, settings.options.manifests
    if manifests and not Path(manifests).is_dir():
        raise InputError(f"flag --manifests: {manifests} is no directory: make it, or name another one")
    if kubelet.enable_server:
        check_free(kubelet.address, kubelet.port, field="port")
        check_free(kubelet.healthz_bind_address, kubelet.healthz_port, field="healthzPort")
    for path in (settings.root, settings.pki):
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"{path} cannot be made: {(exc.strerror or '').lower()} (--root-dir)") from exc


def _check_kernel(settings: Settings, proc: Path, cgroups: Path) -> None:
    swaps = (proc / "swaps").read_text().splitlines()[1:] if (proc / "swaps").exists() else []
    if settings.kubelet.fail_swap_on and swaps:
        devices = ", ".join(line.split()[0] for line in swaps)
        raise InputError(f"swap is on ({devices}): run swapoff -a, or set failSwapOn: false")
    if not (cgroups / "cgroup.controllers").exists() and not (cgroups / "memory").is_dir():
        raise InputError(f"no cgroups in {cgroups}: mount cgroup2 there (mount -t cgroup2 none {cgroups})")


def _check_credentials(settings: Settings) -> None:
    """Read the kubeconfig that will be used; with a bootstrap file, a bad or old one is replaced instead."""
    options = settings.options
    if options.standalone:
        return
    path = Path(options.kubeconfig)
    if not options.bootstrap_kubeconfig:
        kubeconfig.load(path)
    elif not path.exists():
        kubeconfig.load(Path(options.bootstrap_kubeconfig))


def _check_programs(settings: Settings) -> None:
    own = settings.nodelet
    if own.overlay.backend == "none" and own.proxy.mode == "none":
        return  # the rules are another program's business
    for program in ("iptables", "iptables-save", "iptables-restore"):
        if processes.which(program) is None:
            raise InputError(f"{program} is not installed: apt-get install iptables")


async def check_server(transport: Transport) -> None:
    """Say hello to the API server. Only a wrong certificate counts: all else may pass by itself.

    Raises:
        InputError: the server's certificate does not pass the check with the kubeconfig's CA.
    """
    try:
        await transport.request("GET", "/version", timeout=GREETING_SECONDS)
    except ApiError as exc:
        refuse_stranger(exc)


def refuse_stranger(exc: ApiError) -> None:
    """Turn a failed check of the server's certificate into an InputError; let any other error be."""
    if exc.reason == "BadCertificate":
        fix = "correct certificate-authority, server or tls-server-name there"
        raise InputError(f"{exc.message}: {fix}") from exc

"""The plugin's one entry: a CNI command with its parameters in, the CNI result object out.

`nodelet-cni` (cni.main) calls it with what it read from the environment and stdin; `nodelet-cri` calls it
in-process when the configuration names our own plugin. Same input, same result (CNI specification 1.1.0).

Not for: choosing and chaining plugins, which is the runtime's part of the specification.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from cni import config as configs
from cni import errors, firewall, hostlocal, hostports, ipam, previous, result
from cni.config import Attachment, NetworkConfig, gateway
from cni.errors import CniError
from cni.wiring import Wiring
from host import processes
from host.errors import HostError, from_oserror
from host.failpoints import reach
from host.netlink import Netlink
from host.rtnl import IPInterface

PLUGIN_TYPE = configs.PLUGIN_TYPE
"""The `type` by which a network configuration names this plugin."""


def execute(
    command: str,
    *,
    config: Mapping[str, Any],
    container_id: str = "",
    netns: str = "",
    ifname: str = "",
    args: Mapping[str, str] | None = None,
    path: str = "",
) -> dict[str, Any]:
    """Run one CNI command in the network namespace of the calling thread (the node's).

    Blocks for some milliseconds: call it from a thread (asyncio.to_thread). Calls may run in parallel.

    Args:
        command: ADD, DEL, CHECK, GC, STATUS or VERSION.
        config: the network configuration as a runtime hands it over on stdin: the plugin's object from the
            conflist plus `name` and `cniVersion` and, where they apply, `runtimeConfig`, `prevResult` (in a
            chain, and for CHECK) and `cni.dev/valid-attachments` (GC).
        container_id: CNI_CONTAINERID.
        netns: CNI_NETNS, a path; may be empty or gone for DEL.
        ifname: CNI_IFNAME.
        args: the pairs of CNI_ARGS (K8S_POD_NAMESPACE, K8S_POD_NAME, …), kept as a note with the lease.
        path: CNI_PATH, not needed: this plugin calls no other.

    Returns:
        The result object; {} for commands that have none. DEL is idempotent and works without netns.

    Raises:
        CniError: with the code, and `.to_dict()` for the error object of the specification.
    """
    if command == "VERSION":
        known = configs.SUPPORTED_VERSIONS
        asked = config.get("cniVersion")
        return {"cniVersion": asked if asked in known else known[-1], "supportedVersions": list(known)}
    try:
        network = configs.parse_config(config, args)
        _check_version(command, network.cni_version)
        before = previous.parse_previous(config.get("prevResult"))
        with Netlink() as netlink:
            wiring = Wiring(netlink)
            if command == "STATUS":
                return _status(network, wiring)
            if command == "GC":
                return _collect(network, configs.valid_attachments(config), wiring)
            attachment = configs.parse_attachment(container_id, ifname)
            if command == "ADD":
                own = _add(network, attachment, netns, args=args or {}, wiring=wiring)
                return previous.joined(before, own)
            if command == "DEL":
                return _delete(network, attachment, wiring)
            if command == "CHECK":
                return _check(network, attachment, netns, netlink=netlink, before=before)
    except HostError as exc:
        raise CniError(errors.PLUGIN_FAILURE, f"{command} {container_id[:12]} failed", str(exc)) from exc
    except OSError as exc:
        problem = str(from_oserror(exc, str(exc.filename or "input or output")))
        raise CniError(errors.IO_FAILURE, f"{command} {container_id[:12]} failed", problem) from exc
    raise CniError(errors.INVALID_ENVIRONMENT, f"CNI_COMMAND {command[:20]!r} is not a command")


def _check_version(command: str, version: str) -> None:
    """CHECK came with 0.4.0, STATUS and GC with 1.1.0: an older configuration must not be asked."""
    since = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}.get(command, "")
    if version < since:
        problem = f"cniVersion {version} has no {command}"
        raise CniError(errors.INCOMPATIBLE_VERSION, problem, f"it came with {since}")


def _status(network: NetworkConfig, wiring: Wiring) -> dict[str, Any]:
    """Whether ADD can be served: a full range is not asked after, because a pod that ends makes room."""
    problem = wiring.obstacle(network)
    if not problem and not processes.which("iptables-restore"):
        problem = "iptables is not installed"
    if problem:
        raise CniError(errors.NOT_AVAILABLE, "pods cannot be connected", problem)
    return {}


def _leases(network: NetworkConfig) -> ipam.Leases:
    return ipam.Leases(network.state_dir / network.name, boot_id=ipam.read_boot_id())


def _add(
    network: NetworkConfig, attachment: Attachment, netns: str, *, args: Mapping[str, str], wiring: Wiring
) -> dict[str, Any]:
    if not netns:
        raise CniError(errors.INVALID_ENVIRONMENT, "CNI_NETNS is empty", "ADD needs the pod's namespace")
    leases = _leases(network)
    firewall.ensure_once(network, ipam.read_boot_id())
    note = {**args, "netns": netns}
    if network.pod.aliases:
        note["aliases"] = ",".join(network.pod.aliases)
    addresses = _lease(network, attachment, wiring=wiring, leases=leases, note=note)
    try:
        reach("cni_add.leased")
        pod = f"{args.get('K8S_POD_NAMESPACE', '')}/{args.get('K8S_POD_NAME', '')}".strip("/")
        wire = wiring.attach(network, attachment, pod_netns=netns, addresses=addresses, pod=pod)
        try:
            reach("cni_add.wired")
            hostports.add(network, attachment, addresses, label=pod or attachment.container_id[:32])
        except BaseException:
            wiring.detach(attachment)
            raise
    except BaseException:
        leases.release(attachment)
        raise
    return result.add_result(
        network.cni_version,
        bridge=(wire.bridge.name, wire.bridge.mac),
        host_end=(wire.host_end.name, wire.host_end.mac),
        pod_end=(attachment.ifname, wire.pod_mac),
        netns=netns,
        mtu=wire.host_end.mtu,
        addresses=[(address, gateway(address.network).ip) for address in addresses],
        dns=network.pod.dns,
    )


def _lease(
    network: NetworkConfig,
    attachment: Attachment,
    *,
    wiring: Wiring,
    leases: ipam.Leases,
    note: Mapping[str, str],
) -> list[IPInterface]:
    def adopt() -> Iterable[ipam.Lease]:
        return [lease for found in wiring.attached().values() for lease in found]

    @functools.cache
    def live() -> frozenset[Attachment]:
        return frozenset(wiring.attached())

    reserved = hostlocal.held(network.host_local_dir)
    addresses = leases.allocate(
        attachment,
        network.subnets,
        note=note,
        requested=network.pod.addresses,
        reserved=reserved,
        is_live=lambda owner: owner in live(),
        adopt=adopt,
    )
    if addresses is None:
        ranges = ", ".join(map(str, network.subnets))
        advice = "every address belongs to a running pod: lower maxPods or give the node a larger podCIDR"
        if taken := sum(any(address in subnet for subnet in network.subnets) for address in reserved):
            advice += f"; {taken} belong to pods of host-local ({network.host_local_dir})"
        raise CniError(errors.ADDRESSES_EXHAUSTED, f"no free address in {ranges}", advice)
    return addresses


def _delete(network: NetworkConfig, attachment: Attachment, wiring: Wiring) -> dict[str, Any]:
    """Ports first and the lease last: an address is free only when nothing on the node uses it any more."""
    hostports.remove(network, attachment)
    wiring.detach(attachment)
    reach("cni_del.detached")
    _leases(network).release(attachment)
    return {}


def _check(
    network: NetworkConfig,
    attachment: Attachment,
    netns: str,
    *,
    netlink: Netlink,
    before: Mapping[str, Any],
) -> dict[str, Any]:
    from cni import check  # ADD and DEL have no time for it

    owned = [lease.address for lease in _leases(network).listed() if lease.owner == attachment]
    problem = "" if owned else "its address is not leased"
    problem = problem or previous.check_claims(before, ifname=attachment.ifname, netns=netns, addresses=owned)
    problem = problem or check.devices(netlink, network, attachment, pod_netns=netns, addresses=owned)
    problem = problem or hostports.check(network, attachment)
    if problem:
        raise CniError(errors.CHECK_FAILED, f"{attachment.container_id[:12]} is not as ADD left it", problem)
    return {}


def _collect(network: NetworkConfig, valid: frozenset[Attachment], wiring: Wiring) -> dict[str, Any]:
    """Remove what belongs to attachments that are not in `valid`; leases equal live pods afterwards."""
    attached = wiring.attached()
    for attachment in hostports.owners(network) - valid:
        hostports.remove(network, attachment)
    for attachment in wiring.owners() - valid:
        wiring.detach(attachment)
    kernel = [lease for found in attached.values() for lease in found]
    _leases(network).keep_only(valid, kernel)
    return {}

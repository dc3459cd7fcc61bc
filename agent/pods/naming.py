"""A pod's names and name resolution: hostname, /etc/hosts, resolv.conf. Pure but for reading the host's
files.

Source: pkg/kubelet/network/dns/dns.go and pkg/kubelet/kubelet_pods.go (v1.37); KEP-1797 (FQDN hostname).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.api.structs import HostAlias, Pod

HOSTNAME_LIMIT = 63
MAX_NAMESERVERS = 3
MAX_SEARCHES = 32
MAX_SEARCH_CHARACTERS = 2048
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class NamingError(Exception):
    """The pod's names are not usable; the text says which."""


@dataclass(frozen=True)
class Dns:
    """Content of a resolv.conf."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def hostname_and_domain(pod: Pod, cluster_domain: str) -> tuple[str, str]:
    """The pod's hostname (at most 63 characters) and its domain, which is empty without a subdomain."""
    override = pod.spec.hostname_override
    if override is not None:
        if not _SUBDOMAIN.fullmatch(override):
            raise NamingError(f"pod HostnameOverride {override!r} is not a valid DNS subdomain")
        return _cut(override), ""
    name = pod.spec.hostname or pod.metadata.name
    if pod.spec.hostname and not _LABEL.fullmatch(name):
        raise NamingError(f"pod Hostname {name!r} is not a valid DNS label")
    if not pod.spec.subdomain:
        return _cut(name), ""
    if not _LABEL.fullmatch(pod.spec.subdomain):
        raise NamingError(f"pod Subdomain {pod.spec.subdomain!r} is not a valid DNS label")
    return _cut(name), f"{pod.spec.subdomain}.{pod.metadata.namespace}.svc.{cluster_domain}"


def kernel_hostname(pod: Pod, cluster_domain: str) -> str:
    """The UTS name: the hostname, or the whole FQDN with setHostnameAsFQDN (at most 64 characters)."""
    name, domain = hostname_and_domain(pod, cluster_domain)
    if not (pod.spec.set_hostname_as_fqdn and domain):
        return name
    fqdn = f"{name}.{domain}"
    if len(fqdn) > HOSTNAME_LIMIT + 1:
        raise NamingError(
            f"failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long "
            f"({HOSTNAME_LIMIT + 1} characters is the max, {len(fqdn)} characters requested)"
        )
    return fqdn


def _cut(name: str) -> str:
    return name[:HOSTNAME_LIMIT].rstrip("-.")


def hosts_file(*, ips: Sequence[str], hostname: str, domain: str, aliases: Sequence[HostAlias]) -> str:
    """/etc/hosts of a pod with a network of its own."""
    lines = [
        "# Kubernetes-managed hosts file.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ]
    names = f"{hostname}.{domain}\t{hostname}" if domain else hostname
    lines += [f"{ip}\t{names}" for ip in ips]
    return "\n".join(lines) + "\n" + _alias_lines(aliases)


def host_network_hosts_file(node_file: str, aliases: Sequence[HostAlias]) -> str:
    """/etc/hosts of a pod in the node's network: the node's own file and the aliases."""
    return "# Kubernetes-managed hosts file (host network).\n" + node_file + _alias_lines(aliases)


def _alias_lines(aliases: Sequence[HostAlias]) -> str:
    if not aliases:
        return ""
    entries = [f"{alias.ip}\t" + "\t".join(alias.hostnames) for alias in aliases]
    return "\n# Entries added by HostAliases.\n" + "\n".join(entries) + "\n"


def parse_resolv_conf(text: str) -> Dns:
    """Servers, searches and options of a resolv.conf; the last search line wins, as resolv.conf(5) says."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = [word.rstrip(".") or "." for word in words[1:] if word != "."]
        elif words[0] == "options":
            options = words[1:]
    return Dns(tuple(servers), tuple(searches), tuple(options))


def pod_dns(pod: Pod, *, host: Dns, cluster_servers: Sequence[str], cluster_domain: str) -> Dns:
    """What a pod's resolv.conf shall say, by dnsPolicy and dnsConfig.

    Args:
        host: the node's resolv.conf, as kubelet's `resolvConf` names it.
        cluster_servers: kubelet's `clusterDNS`; when empty, ClusterFirst falls back to Default.
        cluster_domain: kubelet's `clusterDomain`.
    """
    policy = pod.spec.dns_policy
    if policy == "None":
        base = Dns()
    elif policy == "Default" or (policy == "ClusterFirst" and pod.spec.host_network) or not cluster_servers:
        base = host
    else:
        zones: list[str] = []
        if cluster_domain:
            zones = [
                f"{pod.metadata.namespace}.svc.{cluster_domain}",
                f"svc.{cluster_domain}",
                cluster_domain,
            ]
        base = Dns(tuple(cluster_servers), _unique((*zones, *host.searches)), ("ndots:5",))
    return _with_config(pod, base)


def _with_config(pod: Pod, base: Dns) -> Dns:
    config = pod.spec.dns_config
    if config is None:
        return base
    options = dict(_split_option(o) for o in base.options)
    options.update({o.name: o.value or "" for o in config.options})
    return Dns(
        _unique((*base.servers, *config.nameservers)),
        _unique((*base.searches, *config.searches)),
        tuple(f"{name}:{value}" if value else name for name, value in options.items()),
    )


def limited(dns: Dns) -> Dns:
    """What the resolver can read; more would be cut off by it anyway."""
    searches: list[str] = []
    for zone in dns.searches[:MAX_SEARCHES]:
        if sum(len(s) + 1 for s in searches) + len(zone) > MAX_SEARCH_CHARACTERS:
            break
        searches.append(zone)
    return Dns(dns.servers[:MAX_NAMESERVERS], tuple(searches), dns.options)


def limits_exceeded(dns: Dns) -> list[str]:
    """What the resolver cannot read of it, in kubelet's words; nothing when it can read all."""
    applied, words = limited(dns), []
    if applied.servers != dns.servers:
        kept = " ".join(applied.servers)
        words.append(
            "Nameserver limits were exceeded, some nameservers have been omitted, "
            f"the applied nameserver line is: {kept}"
        )
    if applied.searches != dns.searches:
        kept = " ".join(applied.searches)
        words.append(
            "Search Line limits were exceeded, some search paths have been omitted, "
            f"the applied search line is: {kept}"
        )
    return words


def only_stub(dns: Dns) -> bool:
    """Whether the only servers are stub resolvers of this machine, which no pod can reach."""
    return bool(dns.servers) and all(server.startswith("127.") for server in dns.servers)


def _split_option(text: str) -> tuple[str, str]:
    name, _, value = text.partition(":")
    return name, value


def _unique(items: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))

"""Command line flags: the kubelet's that kubeadm and node images write, and a few of ours.

One table says what each flag means. Go's flag syntax is accepted (`--name=value`, `--name value`, `--flag`
for booleans, `-v 2`). A flag that sets a field of KubeletConfiguration wins over the file, as in kubelet; a
kubelet flag that has no effect here is logged; an unknown flag is an error.

Source: k8s.io/kubernetes/cmd/kubelet/app/options/options.go, v1.37.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import Any

from agent.config.durations import parse_duration
from host.errors import InputError

log = logging.getLogger(__name__)
Parser = Callable[[str], Any]


def _text(value: str) -> str:
    return value


def _boolean(value: str) -> bool:
    if value.lower() in ("true", "t", "1"):
        return True
    if value.lower() in ("false", "f", "0"):
        return False
    raise ValueError(f"must be true or false, not {value!r}")


def _integer(value: str) -> int:
    try:
        return int(value)
    except ValueError as exc:
        raise ValueError(f"must be a whole number, not {value!r}") from exc


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _addresses(value: str) -> tuple[str, ...]:
    return tuple(str(ipaddress.ip_address(word)) for word in _words(value))


def _pairs(value: str) -> dict[str, str]:
    result = {}
    for word in _words(value):
        key, separator, text = word.partition("=")
        if not separator:
            raise ValueError(f"must be key=value[,key=value], not {word!r}")
        result[key] = text
    return result


def _seconds(value: str) -> float:
    return float(parse_duration(value))


def _thresholds(value: str) -> dict[str, str]:
    return _pairs(value.replace("<", "="))


def _taints(value: str) -> list[dict[str, str]]:
    result = []
    for word in _words(value):
        left, separator, effect = word.rpartition(":")
        if not separator or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise ValueError(f"must be key[=value]:effect, not {word!r}")
        key, _, text = left.partition("=")
        result.append({"key": key, "value": text, "effect": effect})
    return result


def _gates(value: str) -> dict[str, bool]:
    return {name: _boolean(text) for name, text in _pairs(value).items()}


@dataclasses.dataclass(frozen=True)
class Flag:
    """Sets an attribute of Options (`option`) or a KubeletConfiguration field (`field`, dotted), or
    nothing."""

    parse: Parser = _text
    option: str = ""
    field: str = ""


OPTION_FLAGS: dict[str, Flag] = {
    "config": Flag(option="config"),
    "config-dir": Flag(option="config_dir"),
    "nodelet-config": Flag(option="nodelet_config"),
    "kubeconfig": Flag(option="kubeconfig"),
    "bootstrap-kubeconfig": Flag(option="bootstrap_kubeconfig"),
    "hostname-override": Flag(option="hostname_override"),
    "node-ip": Flag(_addresses, option="node_ips"),
    "node-labels": Flag(_pairs, option="node_labels"),
    "cert-dir": Flag(option="cert_dir"),
    "root-dir": Flag(option="root_dir"),
    "standalone": Flag(_boolean, option="standalone"),
    "manifests": Flag(option="manifests"),
    "maximum-dead-containers": Flag(_integer, option="dead_in_all"),
    "maximum-dead-containers-per-container": Flag(_integer, option="dead_per_container"),
    "minimum-container-ttl-duration": Flag(_seconds, option="dead_minimum_age"),
    "v": Flag(_integer, option="verbosity"),
}

FIELD_FLAGS: dict[str, Flag] = {
    "address": Flag(field="address"),
    "anonymous-auth": Flag(_boolean, field="authentication.anonymous.enabled"),
    "authentication-token-webhook": Flag(_boolean, field="authentication.webhook.enabled"),
    "authorization-mode": Flag(field="authorization.mode"),
    "cgroup-driver": Flag(field="cgroupDriver"),
    "cgroup-root": Flag(field="cgroupRoot"),
    "client-ca-file": Flag(field="authentication.x509.clientCAFile"),
    "cluster-dns": Flag(_words, field="clusterDNS"),
    "cluster-domain": Flag(field="clusterDomain"),
    "container-log-max-files": Flag(_integer, field="containerLogMaxFiles"),
    "container-log-max-size": Flag(field="containerLogMaxSize"),
    "container-runtime-endpoint": Flag(field="containerRuntimeEndpoint"),
    "eviction-hard": Flag(_thresholds, field="evictionHard"),
    "eviction-soft": Flag(_thresholds, field="evictionSoft"),
    "eviction-soft-grace-period": Flag(_pairs, field="evictionSoftGracePeriod"),
    "eviction-max-pod-grace-period": Flag(_integer, field="evictionMaxPodGracePeriod"),
    "eviction-minimum-reclaim": Flag(_pairs, field="evictionMinimumReclaim"),
    "eviction-pressure-transition-period": Flag(field="evictionPressureTransitionPeriod"),
    "enforce-node-allocatable": Flag(_words, field="enforceNodeAllocatable"),
    "fail-swap-on": Flag(_boolean, field="failSwapOn"),
    "feature-gates": Flag(_gates, field="featureGates"),
    "healthz-bind-address": Flag(field="healthzBindAddress"),
    "healthz-port": Flag(_integer, field="healthzPort"),
    "image-gc-high-threshold": Flag(_integer, field="imageGCHighThresholdPercent"),
    "image-gc-low-threshold": Flag(_integer, field="imageGCLowThresholdPercent"),
    "kube-reserved": Flag(_pairs, field="kubeReserved"),
    "kube-reserved-cgroup": Flag(field="kubeReservedCgroup"),
    "local-storage-capacity-isolation": Flag(_boolean, field="localStorageCapacityIsolation"),
    "minimum-image-ttl-duration": Flag(field="imageMinimumGCAge"),
    "pods-per-core": Flag(_integer, field="podsPerCore"),
    "system-reserved-cgroup": Flag(field="systemReservedCgroup"),
    "max-pods": Flag(_integer, field="maxPods"),
    "node-status-update-frequency": Flag(field="nodeStatusUpdateFrequency"),
    "pod-cidr": Flag(field="podCIDR"),
    "pod-manifest-path": Flag(field="staticPodPath"),
    "pod-max-pids": Flag(_integer, field="podPidsLimit"),
    "port": Flag(_integer, field="port"),
    "provider-id": Flag(field="providerID"),
    "register-node": Flag(_boolean, field="registerNode"),
    "register-with-taints": Flag(_taints, field="registerWithTaints"),
    "resolv-conf": Flag(field="resolvConf"),
    "rotate-certificates": Flag(_boolean, field="rotateCertificates"),
    "rotate-server-certificates": Flag(_boolean, field="serverTLSBootstrap"),
    "runtime-request-timeout": Flag(field="runtimeRequestTimeout"),
    "seccomp-default": Flag(_boolean, field="seccompDefault"),
    "serialize-image-pulls": Flag(_boolean, field="serializeImagePulls"),
    "system-reserved": Flag(_pairs, field="systemReserved"),
    "tls-cert-file": Flag(field="tlsCertFile"),
    "tls-private-key-file": Flag(field="tlsPrivateKeyFile"),
}

_NO_EFFECT_BOOLEAN = "contention-profiling enable-debugging-handlers fail-cgroupv1 runonce logtostderr"
_NO_EFFECT_TEXT = """cloud-provider image-credential-provider-config image-credential-provider-bin-dir
    image-service-endpoint pod-infra-container-image runtime-cgroups kubelet-cgroups system-cgroups
    volume-plugin-dir read-only-port hairpin-mode cpu-manager-policy topology-manager-policy
    memory-manager-policy kube-api-qps kube-api-burst event-qps event-burst
    registry-qps registry-burst logging-format vmodule tls-cipher-suites tls-min-version sync-frequency
    protect-kernel-defaults make-iptables-util-chains cgroups-per-qos container-runtime network-plugin
    lock-file streaming-connection-idle-timeout reserved-cpus"""

FLAGS: dict[str, Flag] = {
    **OPTION_FLAGS,
    **FIELD_FLAGS,
    **{name: Flag(_boolean) for name in _NO_EFFECT_BOOLEAN.split()},
    **{name: Flag() for name in _NO_EFFECT_TEXT.split()},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What only the command line can say."""

    config: str = ""
    """KubeletConfiguration file."""
    config_dir: str = ""
    """Folder of `*.conf` drop-ins, merged in order of their names."""
    nodelet_config: str = ""
    kubeconfig: str = ""
    bootstrap_kubeconfig: str = ""
    hostname_override: str = ""
    node_ips: tuple[str, ...] = ()
    node_labels: dict[str, str] = dataclasses.field(default_factory=dict)
    cert_dir: str = ""
    """Folder of our keys and certificates; empty: <root>/pki."""
    root_dir: str = "/var/lib/kubelet"
    standalone: bool = False
    manifests: str = ""
    """Folder of static pods (with --standalone)."""
    dead_per_container: int = 1
    """Dead containers kept of each container of a pod besides the newest; negative: all."""
    dead_in_all: int = -1
    """Dead containers kept on the node; negative: no limit."""
    dead_minimum_age: float = 0.0
    """Seconds a container has to be dead before it is removed."""
    verbosity: int = 2
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """KubeletConfiguration fields set by flags, nested as in the file."""


def parse(argv: Sequence[str]) -> Options:
    """Read the arguments of `nodelet run`.

    Raises:
        InputError: an unknown flag, or a value the flag cannot have; one line with the fix.
    """
    options: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, separator, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            raise InputError(f"unexpected argument {word!r}: flags begin with --, see nodelet --help")
        flag = FLAGS.get(name.replace("_", "-"))
        if flag is None:
            near = difflib.get_close_matches(name, FLAGS, 1)
            hint = f"did you mean --{near[0]}?" if near else "see nodelet --help"
            raise InputError(f"unknown flag --{name}: {hint}")
        if not separator:
            if flag.parse is _boolean:
                value = "true"
            elif words:
                value = words.pop(0)
            else:
                raise InputError(f"flag --{name} needs a value: --{name}=…")
        try:
            parsed = flag.parse(value)
        except ValueError as exc:
            raise InputError(f"flag --{name}: {exc}") from exc
        if flag.option:
            options[flag.option] = parsed
        elif flag.field:
            _set(fields, flag.field, parsed)
        else:
            log.info("flag has no effect here flag=--%s", name)
    return Options(**options, fields=fields)


def _set(document: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    document[last] = value

"""networking.k8s.io/v1 NetworkPolicy. Only shapes.

A selector that is absent and one that is empty mean different things here, hence the `None`s.

Source: k8s.io/api/networking/v1/types.go (API reference v1.37).
"""

from __future__ import annotations

from agent.api.meta import LabelSelector, Object, Struct
from agent.api.podspec import IntOrString


class IPBlock(Struct, frozen=True, kw_only=True):
    cidr: str = ""
    except_: tuple[str, ...] = ()


class NetworkPolicyPeer(Struct, frozen=True, kw_only=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class NetworkPolicyPort(Struct, frozen=True, kw_only=True):
    protocol: str = "TCP"
    port: IntOrString | None = None
    end_port: int | None = None


class NetworkPolicyIngressRule(Struct, frozen=True, kw_only=True):
    ports: tuple[NetworkPolicyPort, ...] = ()
    from_: tuple[NetworkPolicyPeer, ...] = ()


class NetworkPolicyEgressRule(Struct, frozen=True, kw_only=True):
    ports: tuple[NetworkPolicyPort, ...] = ()
    to: tuple[NetworkPolicyPeer, ...] = ()


class NetworkPolicySpec(Struct, frozen=True, kw_only=True):
    pod_selector: LabelSelector = LabelSelector()
    ingress: tuple[NetworkPolicyIngressRule, ...] = ()
    egress: tuple[NetworkPolicyEgressRule, ...] = ()
    policy_types: tuple[str, ...] = ()


class NetworkPolicy(Object, frozen=True, kw_only=True):
    spec: NetworkPolicySpec = NetworkPolicySpec()

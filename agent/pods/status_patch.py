"""A pod status as a strategic merge patch: what we own, nothing else. Pure.

Lists that the API merges by key need care: a condition's absent field must be sent as null, or the old text
stays; addresses are replaced as a whole; conditions of others are never sent.

Source: core/v1 types.go (patchStrategy tags), strategic merge patch in the API conventions.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.api.structs import Condition, PodIP, PodStatus
from agent.pods.status import OWN_CONDITIONS


def status_patch(status: PodStatus, *, uid: str, before: PodStatus | None = None) -> dict[str, Any]:
    """The body of a PATCH of pods/status; refused by the API for a namesake with another uid.

    Args:
        before: what the API has, as far as it is known: conditions of ours that are over are deleted there.
    """
    kept = {c.type for c in status.conditions}
    over = {c.type for c in before.conditions} - kept if before is not None else set()
    body: dict[str, Any] = {
        "observedGeneration": status.observed_generation or None,
        "phase": status.phase,
        "reason": status.reason or None,
        "message": status.message or None,
        "conditions": [
            *(_condition(c) for c in status.conditions if c.type in OWN_CONDITIONS),
            *({"$patch": "delete", "type": kind} for kind in OWN_CONDITIONS if kind in over),
        ],
        "hostIP": status.host_ip or None,
        "hostIPs": _addresses(status.host_ips),
        "podIP": status.pod_ip or None,
        "podIPs": _addresses(status.pod_ips),
        "startTime": status.start_time,
        "qosClass": status.qos_class or None,
        "allocatedResources": status.allocated_resources or None,
        "resources": msgspec.to_builtins(status.resources) if status.resources else None,
    }
    for name, statuses in (
        ("initContainerStatuses", status.init_container_statuses),
        ("containerStatuses", status.container_statuses),
        ("ephemeralContainerStatuses", status.ephemeral_container_statuses),
    ):
        if statuses:
            body[name] = msgspec.to_builtins(statuses)
    return {"metadata": {"uid": uid}, "status": body}


def _condition(condition: Condition) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": condition.status,
        "observedGeneration": condition.observed_generation or None,
        "lastProbeTime": None,
        "lastTransitionTime": condition.last_transition_time,
        "reason": condition.reason or None,
        "message": condition.message or None,
    }


def _addresses(ips: tuple[PodIP, ...]) -> list[dict[str, str]] | None:
    if not ips:
        return None
    return [{"$patch": "replace"}, *({"ip": ip.ip} for ip in ips)]

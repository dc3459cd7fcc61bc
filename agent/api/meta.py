"""Parts every API object shares: names, owners, list data, references.

All structs of `agent.api` are immutable msgspec records. Attribute names are snake_case, the JSON names are
the API's own (`wire_name` knows the initialisms). Unknown JSON fields are dropped, absent ones get the API's
default, and a field that equals its default is not written. Times stay RFC 3339 strings (see
`agent.api.times`): most are only copied. This module decides nothing.

Source: k8s.io/apimachinery/pkg/apis/meta/v1/types.go, k8s.io/api/core/v1/types.go (API reference v1.37).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_INITIALISMS = {
    "ip": "IP",
    "ips": "IPs",
    "cidr": "CIDR",
    "cidrs": "CIDRs",
    "id": "ID",
    "pid": "PID",
    "ipc": "IPC",
    "gid": "GID",
    "uuid": "UUID",
    "api": "API",
    "fs": "FS",
    "url": "URL",
    "gmsa": "GMSA",
    "ca": "CA",
    "tls": "TLS",
    "http": "HTTP",
    "tcp": "TCP",
    "wwn": "WWN",
}
_IRREGULAR = {
    "host_users": "hostUsers",
    "http_get": "httpGet",
    "wwids": "wwids",
    "target_wwns": "targetWWNs",
    "fs_type": "fsType",
    "fs_group": "fsGroup",
    "fs_group_change_policy": "fsGroupChangePolicy",
    "api_version": "apiVersion",
    "api_group": "apiGroup",
    "gmsa_credential_spec": "gmsaCredentialSpec",
    "gmsa_credential_spec_name": "gmsaCredentialSpecName",
    "client_ip": "clientIP",
    "from_": "from",
    "except_": "except",
    "set_hostname_as_fqdn": "setHostnameAsFQDN",
    "se_linux_options": "seLinuxOptions",
    "app_armor_profile": "appArmorProfile",
}


def wire_name(attribute: str) -> str:
    """The API's JSON name of a snake_case attribute: `pod_ip` is `podIP`, `host_port` is `hostPort`."""
    if attribute in _IRREGULAR:
        return _IRREGULAR[attribute]
    first, *rest = attribute.split("_")
    return first + "".join(_INITIALISMS.get(word, word.capitalize()) for word in rest)


class Struct(msgspec.Struct, frozen=True, rename=wire_name, omit_defaults=True, kw_only=True, gc=False):
    """Base of every API record. `gc=False` is safe: immutable trees decoded from JSON have no cycles."""


Time = str
"""An RFC 3339 time in UTC, as the API writes it."""

Quantities = Mapping[str, str]
"""Resource name to quantity text ("cpu": "100m"); `agent.api.quantity` reads the text."""


class OwnerReference(Struct, frozen=True, kw_only=True):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Struct, frozen=True, kw_only=True):
    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


class ListMeta(Struct, frozen=True, kw_only=True):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remaining_item_count: int | None = None


class Object(Struct, frozen=True, kw_only=True):
    """Base of everything that has a name. `kind` and `api_version` are empty on the items of a list."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = ObjectMeta()


class LocalObjectReference(Struct, frozen=True, kw_only=True):
    name: str = ""


class ObjectReference(Struct, frozen=True, kw_only=True):
    """Names another object; `field_path` is like `spec.containers{web}`."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""


class LabelSelectorRequirement(Struct, frozen=True, kw_only=True):
    key: str = ""
    operator: str = ""
    values: tuple[str, ...] = ()


class LabelSelector(Struct, frozen=True, kw_only=True):
    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


class Condition(Struct, frozen=True, kw_only=True):
    """A condition of a pod or a node; `status` is "True", "False" or "Unknown"."""

    type: str = ""
    status: str = ""
    observed_generation: int = 0
    last_probe_time: Time | None = None
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    reason: str = ""
    message: str = ""


class StatusDetails(Struct, frozen=True, kw_only=True):
    name: str = ""
    kind: str = ""
    uid: str = ""
    retry_after_seconds: int = 0


class Status(Struct, frozen=True, kw_only=True):
    """The API's error object (`kind: Status`), also sent as the object of a watch ERROR event."""

    kind: str = ""
    status: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: StatusDetails | None = None


JSON = Any
"""A value msgspec/json can write: dict, list, str, int, float, bool, None."""

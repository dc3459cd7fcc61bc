"""The volume half of the Pod API: sources, projections, mounts, claims.

Only shapes; `agent.volumes` acts on them. Unknown fields are dropped, so a `Volume` whose sources are all
None is of a kind this node does not support.

Source: k8s.io/api/core/v1/types.go (API reference v1.37).
"""

from __future__ import annotations

from typing import Any

from agent.api.meta import LabelSelector, LocalObjectReference, Object, ObjectReference, Quantities, Struct


class KeyToPath(Struct, frozen=True, kw_only=True):
    key: str = ""
    path: str = ""
    mode: int | None = None


class ConfigMapVolumeSource(Struct, frozen=True, kw_only=True):
    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int | None = None
    optional: bool = False


class SecretVolumeSource(Struct, frozen=True, kw_only=True):
    secret_name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int | None = None
    optional: bool = False


class ObjectFieldSelector(Struct, frozen=True, kw_only=True):
    api_version: str = "v1"
    field_path: str = ""


class ResourceFieldSelector(Struct, frozen=True, kw_only=True):
    container_name: str = ""
    resource: str = ""
    divisor: str = ""


class DownwardAPIVolumeFile(Struct, frozen=True, kw_only=True):
    path: str = ""
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    mode: int | None = None


class DownwardAPIVolumeSource(Struct, frozen=True, kw_only=True):
    items: tuple[DownwardAPIVolumeFile, ...] = ()
    default_mode: int | None = None


class SecretProjection(Struct, frozen=True, kw_only=True):
    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


class ConfigMapProjection(Struct, frozen=True, kw_only=True):
    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


class ServiceAccountTokenProjection(Struct, frozen=True, kw_only=True):
    audience: str = ""
    expiration_seconds: int = 3600
    path: str = ""


class ClusterTrustBundleProjection(Struct, frozen=True, kw_only=True):
    name: str = ""
    signer_name: str = ""
    label_selector: LabelSelector | None = None
    optional: bool = False
    path: str = ""


class PodCertificateProjection(Struct, frozen=True, kw_only=True):
    signer_name: str = ""
    key_type: str = ""
    max_expiration_seconds: int | None = None
    credential_bundle_path: str = ""
    key_path: str = ""
    certificate_chain_path: str = ""
    user_annotations: dict[str, str] = {}


class VolumeProjection(Struct, frozen=True, kw_only=True):
    """One of the fields is set."""

    secret: SecretProjection | None = None
    config_map: ConfigMapProjection | None = None
    downward_api: DownwardAPIVolumeSource | None = None
    service_account_token: ServiceAccountTokenProjection | None = None
    cluster_trust_bundle: ClusterTrustBundleProjection | None = None
    pod_certificate: PodCertificateProjection | None = None


class ProjectedVolumeSource(Struct, frozen=True, kw_only=True):
    sources: tuple[VolumeProjection, ...] = ()
    default_mode: int | None = None


class EmptyDirVolumeSource(Struct, frozen=True, kw_only=True):
    medium: str = ""
    size_limit: str | None = None


class HostPathVolumeSource(Struct, frozen=True, kw_only=True):
    path: str = ""
    type: str = ""


class NFSVolumeSource(Struct, frozen=True, kw_only=True):
    server: str = ""
    path: str = ""
    read_only: bool = False


class LocalVolumeSource(Struct, frozen=True, kw_only=True):
    path: str = ""
    fs_type: str = ""


class PersistentVolumeClaimVolumeSource(Struct, frozen=True, kw_only=True):
    claim_name: str = ""
    read_only: bool = False


class EphemeralVolumeSource(Struct, frozen=True, kw_only=True):
    """A claim made from a template; the claim is named `<pod>-<volume>` by the controller."""


class ImageVolumeSource(Struct, frozen=True, kw_only=True):
    reference: str = ""
    pull_policy: str = ""


class CSIVolumeSource(Struct, frozen=True, kw_only=True):
    """An inline CSI volume of a pod."""

    driver: str = ""
    read_only: bool = False
    fs_type: str = ""
    volume_attributes: dict[str, str] = {}
    node_publish_secret_ref: LocalObjectReference | None = None


class SecretReference(Struct, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""


class CSIPersistentVolumeSource(Struct, frozen=True, kw_only=True):
    driver: str = ""
    volume_handle: str = ""
    read_only: bool = False
    fs_type: str = ""
    volume_attributes: dict[str, str] = {}
    node_stage_secret_ref: SecretReference | None = None
    node_publish_secret_ref: SecretReference | None = None
    node_expand_secret_ref: SecretReference | None = None


class Volume(Struct, frozen=True, kw_only=True):
    """At most one source is set; none of them: a kind of volume this node does not know."""

    name: str = ""
    empty_dir: EmptyDirVolumeSource | None = None
    host_path: HostPathVolumeSource | None = None
    config_map: ConfigMapVolumeSource | None = None
    secret: SecretVolumeSource | None = None
    projected: ProjectedVolumeSource | None = None
    downward_api: DownwardAPIVolumeSource | None = None
    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None
    ephemeral: EphemeralVolumeSource | None = None
    nfs: NFSVolumeSource | None = None
    csi: CSIVolumeSource | None = None
    image: ImageVolumeSource | None = None
    git_repo: dict[str, Any] | None = None
    iscsi: dict[str, Any] | None = None
    fc: dict[str, Any] | None = None
    flex_volume: dict[str, Any] | None = None


class VolumeMount(Struct, frozen=True, kw_only=True):
    name: str = ""
    mount_path: str = ""
    read_only: bool = False
    recursive_read_only: str | None = None
    sub_path: str = ""
    sub_path_expr: str = ""
    mount_propagation: str | None = None


class VolumeDevice(Struct, frozen=True, kw_only=True):
    name: str = ""
    device_path: str = ""


class PersistentVolumeSpec(Struct, frozen=True, kw_only=True):
    capacity: Quantities = {}
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    mount_options: tuple[str, ...] = ()
    storage_class_name: str = ""
    host_path: HostPathVolumeSource | None = None
    nfs: NFSVolumeSource | None = None
    local: LocalVolumeSource | None = None
    csi: CSIPersistentVolumeSource | None = None
    iscsi: dict[str, Any] | None = None
    fc: dict[str, Any] | None = None
    flex_volume: dict[str, Any] | None = None
    claim_ref: ObjectReference | None = None


class PersistentVolume(Object, frozen=True, kw_only=True):
    spec: PersistentVolumeSpec = PersistentVolumeSpec()


class PersistentVolumeClaimSpec(Struct, frozen=True, kw_only=True):
    volume_name: str = ""
    volume_mode: str = "Filesystem"
    access_modes: tuple[str, ...] = ()
    storage_class_name: str | None = None


class PersistentVolumeClaimStatus(Struct, frozen=True, kw_only=True):
    phase: str = ""
    capacity: Quantities = {}


class PersistentVolumeClaim(Object, frozen=True, kw_only=True):
    spec: PersistentVolumeClaimSpec = PersistentVolumeClaimSpec()
    status: PersistentVolumeClaimStatus = PersistentVolumeClaimStatus()

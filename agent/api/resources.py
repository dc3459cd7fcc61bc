"""Where each kind lives in the API: group, version, plural name, scope, and the struct it decodes into.

Adding a resource is one line here. Paths follow the API conventions: `/api/v1/...` for the core group,
`/apis/<group>/<version>/...` for all others.
"""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar
from urllib.parse import quote

from agent.api import structs, trust
from agent.api.meta import Object

T = TypeVar("T", bound=Object)


@dataclasses.dataclass(frozen=True)
class Resource(Generic[T]):
    """One kind of object. `group` is "" for the core group; `namespaced` False for cluster-wide kinds."""

    group: str
    version: str
    plural: str
    kind: str
    type: type[T]
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """What objects carry as `apiVersion`: "v1", "coordination.k8s.io/v1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, of one object, or of its subresource."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if namespace and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


PODS = Resource("", "v1", "pods", "Pod", structs.Pod)
NODES = Resource("", "v1", "nodes", "Node", structs.Node, namespaced=False)
SERVICES = Resource("", "v1", "services", "Service", structs.Service)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", structs.ConfigMap)
SECRETS = Resource("", "v1", "secrets", "Secret", structs.Secret)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", structs.ServiceAccount)
EVENTS = Resource("", "v1", "events", "Event", structs.Event)
PERSISTENT_VOLUMES = Resource(
    "", "v1", "persistentvolumes", "PersistentVolume", structs.PersistentVolume, namespaced=False
)
PERSISTENT_VOLUME_CLAIMS = Resource(
    "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", structs.PersistentVolumeClaim
)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", structs.EndpointSlice)
NETWORK_POLICIES = Resource(
    "networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", structs.NetworkPolicy
)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", structs.Lease)
RUNTIME_CLASSES = Resource(
    "node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", structs.RuntimeClass, namespaced=False
)
TOKEN_REQUESTS = Resource(
    "authentication.k8s.io", "v1", "tokenrequests", "TokenRequest", structs.TokenRequest
)
TOKEN_REVIEWS = Resource(
    "authentication.k8s.io", "v1", "tokenreviews", "TokenReview", structs.TokenReview, namespaced=False
)
SUBJECT_ACCESS_REVIEWS = Resource(
    "authorization.k8s.io",
    "v1",
    "subjectaccessreviews",
    "SubjectAccessReview",
    structs.SubjectAccessReview,
    namespaced=False,
)
CERTIFICATE_SIGNING_REQUESTS = Resource(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
    structs.CertificateSigningRequest,
    namespaced=False,
)
CLUSTER_TRUST_BUNDLES = Resource(
    "certificates.k8s.io",
    "v1",
    "clustertrustbundles",
    "ClusterTrustBundle",
    trust.ClusterTrustBundle,
    namespaced=False,
)
POD_CERTIFICATE_REQUESTS = Resource(
    "certificates.k8s.io",
    "v1",
    "podcertificaterequests",
    "PodCertificateRequest",
    trust.PodCertificateRequest,
)

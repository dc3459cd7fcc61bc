"""From the command line to one frozen `Settings`: file, drop-ins, flags, in that order of weight.

Reading only; nothing is created or changed. Drop-ins are merged as kubelet does it: maps key by key, lists
and scalars replaced, files in the order of their names.

Source: https://kubernetes.io/docs/tasks/administer-cluster/kubelet-config-file/ (section on drop-in files).
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from agent.api import yamldoc
from agent.config import kubelet, nodelet
from agent.config.flags import Options
from agent.config.kubelet import KubeletConfiguration
from agent.config.nodelet import NodeletConfiguration
from host.errors import InputError
from host.files import read_input

MAX_FILE = 1 << 20
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything the agent is told at its start."""

    kubelet: KubeletConfiguration
    nodelet: NodeletConfiguration
    options: Options
    node_name: str

    @property
    def root(self) -> Path:
        """The agent's folder, /var/lib/kubelet unless told otherwise."""
        return Path(self.options.root_dir)

    @property
    def pki(self) -> Path:
        """Folder of our certificates."""
        return Path(self.options.cert_dir or self.root / "pki")

    @property
    def static_pods(self) -> Path | None:
        """Folder of static pods, if any."""
        path = self.options.manifests or self.kubelet.static_pod_path
        return Path(path) if path else None


def load(options: Options) -> Settings:
    """Read every file the options name.

    Raises:
        InputError: one line that names the file, the field and the fix.
    """
    document: dict[str, Any] = {}
    where = "flags"
    if options.config:
        where = options.config
        document = read_document(Path(options.config), kubelet.API_VERSION, kubelet.KIND)
        for key in ("staticPodPath",):
            if document.get(key):
                document[key] = str((Path(options.config).parent / document[key]).absolute())
    if options.config_dir:
        for path in _drop_ins(Path(options.config_dir)):
            document = merge(document, read_document(path, kubelet.API_VERSION, kubelet.KIND))
            where = f"{where} with {path.name}"
    document = merge(document, options.fields)
    own: dict[str, Any] = {}
    if options.nodelet_config:
        own = read_document(Path(options.nodelet_config), nodelet.API_VERSION, nodelet.KIND)
    if options.manifests and not options.standalone:
        raise InputError("flag --manifests goes with --standalone; use staticPodPath on a cluster node")
    if not options.standalone and not options.kubeconfig:
        raise InputError("flag --kubeconfig is missing: name one, or use --standalone --manifests DIR")
    settings = Settings(
        kubelet=kubelet.build(document, where=where),
        nodelet=nodelet.build(own, where=options.nodelet_config or "defaults"),
        options=options,
        node_name=node_name(options.hostname_override),
    )
    if options.standalone and settings.static_pods is None and not settings.kubelet.static_pod_url:
        raise InputError("flag --standalone needs pods to run: add --manifests DIR")
    return settings


def node_name(override: str) -> str:
    """The Node's name: the override, or the host name in lower case. Raises InputError for a name that the
    API would refuse (RFC 1123 subdomain)."""
    name = (override or os.uname().nodename).strip().lower()
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise InputError(f"node name {name!r} is not a DNS name: set --hostname-override")
    return name


def read_document(path: Path, api_version: str, kind: str) -> dict[str, Any]:
    """A YAML or JSON file that says it is of this kind."""
    document = yamldoc.load(read_input(path, limit=MAX_FILE), where=str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path} must be a map with apiVersion {api_version} and kind {kind}")
    found = (document.get("apiVersion"), document.get("kind"))
    if found != (api_version, kind):
        raise InputError(f"{path}: expected apiVersion {api_version} and kind {kind}, found {found}")
    return document


def _drop_ins(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".conf" and path.is_file())
    except OSError as exc:
        raise InputError(f"--config-dir {folder} cannot be read: {(exc.strerror or '').lower()}") from exc


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: maps are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result

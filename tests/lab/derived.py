"""Images of the lab's registry, for tests that need one of their own."""

import json

from deploy.labkit.lab import Lab
from deploy.labkit.oci import MANIFEST
from deploy.labkit.registry import RegistryStore


def derive(lab: Lab, name: str, tag: str = "1", **settings: object) -> str:
    """Busybox's files under a full name, with these fields in its configuration; the manifest's digest."""
    store = RegistryStore(root=lab.layout.registry)
    digest, _ = store.resolve("docker.io/library/busybox", "1.36")
    manifest = json.loads(store.blob_path(digest).read_bytes())
    document = json.loads(store.blob_path(manifest["config"]["digest"]).read_bytes())
    document["config"] = document.get("config", {}) | settings
    text = json.dumps(document).encode()
    manifest["config"] |= {"digest": store.put_blob(text), "size": len(text)}
    return store.put_manifest(name, json.dumps(manifest).encode(), media_type=MANIFEST, tags=(tag,))

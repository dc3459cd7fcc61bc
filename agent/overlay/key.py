"""The node's WireGuard key, kept over restarts: peers know this node by it."""

from __future__ import annotations

import base64
from pathlib import Path

from host import files
from host.errors import InputError, NotFound
from host.wireguard import key_bytes

_KIND, _VERSION = "wireguard-key", 1


def keep(path: Path) -> bytes:
    """The private key of this node; a new one, written down at once for its owner alone, where it has none.

    A file that cannot be trusted is set aside: peers hear of the new key by the Node's annotation.

    Args:
        path: the file; its folder is made if missing.

    Raises:
        HostError: the file cannot be written.
    """
    try:
        return key_bytes(files.read_record(path, kind=_KIND, version=_VERSION))
    except NotFound:
        pass
    except (files.CorruptRecord, InputError, TypeError):
        files.quarantine(path)
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    made = X25519PrivateKey.generate().private_bytes_raw()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_record(path, base64.b64encode(made).decode(), kind=_KIND, version=_VERSION)
    return made


def public(private: bytes) -> str:
    """The public key that belongs to a private one, in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    raw = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return base64.b64encode(raw).decode()

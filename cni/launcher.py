"""The executable that a container runtime starts: `nodelet-cni --install DIR` writes it.

A plugin is started twice for every pod. The script that pip makes loads `site` and every package's start-up
hooks, which this plugin, having no dependencies, does not need: this one leaves them out, and the garbage
collector, which would find nothing in a life of milliseconds; and what it does is cni.handover.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cni.config import PLUGIN_TYPE
from cni.handover import DEFAULT_SOCKET
from host import files

_TEXT = """\
#!{python} -IS
# Written by `nodelet-cni --install`; write it again after an update that moves the package.
import gc
import sys

gc.disable()
sys.path.append({root!r})
from cni.handover import main

main({socket!r})
"""


def install(folder: Path, *, socket: Path = Path(DEFAULT_SOCKET)) -> Path:
    """Write the executable into a folder such as /opt/cni/bin; its path.

    Args:
        socket: where a service may listen (`nodelet-cni --serve`).

    Raises:
        HostError: the folder cannot be written.
    """
    path = folder / PLUGIN_TYPE
    root = str(Path(__file__).resolve().parents[1])
    text = _TEXT.format(python=sys.executable, root=root, socket=str(socket))
    files.write_atomic(path, text.encode(), mode=0o755)
    return path

"""The test rings, and how `tests/run` turns their names into one pytest run.

    tests/run [RING | PATH ...] [-- PYTEST-ARGUMENT ...]

Without a ring: all that a machine without virtualisation can do. Argument errors are one line, status 2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RINGS = ("unit", "contract", "root", "lab", "vm", "conformance", "soak", "soak_cri")
DEFAULT = ("unit", "contract", "root", "lab", "conformance")
USAGE = f"usage: tests/run [{' | '.join(RINGS)} | PATH] ... [-- PYTEST-ARGUMENTS]"


class UsageError(Exception):
    """A word on the command line that is neither a ring nor a path."""


def plan(arguments: Sequence[str], root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Test paths and arguments for pytest; rings without tests are left out.

    Raises:
        UsageError: a word that is neither a ring nor a path.
    """
    words = list(arguments)
    extra = words[words.index("--") + 1 :] if "--" in words else []
    words = words[: words.index("--")] if "--" in words else words
    paths = []
    for word in words or DEFAULT:
        if word in RINGS:
            folder = root / "tests" / word
            if any(folder.rglob("test_*.py")):
                paths.append(str(folder))
        elif not word.startswith("-") and (root / word.partition("::")[0]).exists():
            paths.append(str(root / word))
        else:
            raise UsageError(f"tests/run: {word!r} is neither a ring nor a path ({USAGE})")
    return paths, extra


def needs_lab(paths: Sequence[str], root: Path = ROOT) -> bool:
    """Whether one of the paths is in a ring that needs the control plane's binaries."""
    folders = [root / "tests" / name for name in ("lab", "soak")]
    return any(Path(path.partition("::")[0]).is_relative_to(folder) for path in paths for folder in folders)


def apart(paths: Sequence[str], root: Path = ROOT) -> tuple[list[str], list[str]]:
    """(paths that want a process of their own, the others).

    The conformance ring has clients of gRPC's synchronous kind, which the forks of the root ring break.
    """
    alone = [path for path in paths if Path(path.partition("::")[0]) == root / "tests" / "conformance"]
    return alone, [path for path in paths if path not in alone]


def main(argv: Sequence[str]) -> int:
    """Build what the lab ring needs, with progress shown, then become pytest."""
    paths, extra = plan(argv)
    if not paths:
        print("tests/run: these rings have no tests", file=sys.stderr)
        return 0
    if needs_lab(paths):
        from deploy.labkit import lab
        from deploy.labkit.layout import Layout
        from deploy.labkit.progress import Progress

        lab.prepare(Layout(), Progress(), kinds=["kubelet"])
    os.chdir(ROOT)
    pytest = [sys.executable, "-m", "pytest", *extra]
    alone, together = apart(paths)
    for path in alone if together else alone[:-1]:
        if status := subprocess.run([*pytest, path], check=False).returncode:
            return status
    return os.execv(sys.executable, [*pytest, *(together or alone[-1:])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

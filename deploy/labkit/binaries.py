"""Finding the programs a lab runs: named by the user, cached, released, or built; in this order.

Whatever the way, they end up in (or are linked from) `<cache>/bin/<project>-<version>/`, complete or not at
all: a folder is filled beside its place and each file is then renamed into it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.labkit import gobuild, versions
from deploy.labkit.errors import LabError
from deploy.labkit.layout import Layout
from deploy.labkit.progress import Note, Progress

CONNECT_TIMEOUT = 2.0
RELEASES = "https://dl.k8s.io/release"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_building = threading.Lock()
"""One Go build at a time: each uses all cores."""


def architecture() -> str:
    """This machine's, as Go and the release servers name it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def ensure(layout: Layout, projects: Sequence[versions.Project], progress: Progress) -> None:
    """All programs of these projects in the cache; projects that need no build are fetched side by side.

    Raises:
        LabError: one of them could be had in no way; the text says what was tried.
    """
    wanted = [project for project in projects if missing(layout, project)]
    if not wanted:
        return
    with ThreadPoolExecutor(max_workers=4) as pool:
        jobs = [pool.submit(_provide, layout, project, progress) for project in wanted]
        for job in jobs:
            job.result()


def missing(layout: Layout, project: versions.Project) -> list[str]:
    """The programs of a project that the cache lacks."""
    return [name for name in project.programs if not os.access(layout.binary(project, name), os.X_OK)]


def _provide(layout: Layout, project: versions.Project, progress: Progress) -> None:
    place = layout.binary(project).parent
    place.mkdir(parents=True, exist_ok=True)
    with progress.step(f"{project.name} {project.version}") as note:
        if _link_found(layout, project, place):
            return
        names = missing(layout, project)
        left = versions.Project(name=project.name, version=project.version, programs=tuple(names))
        with tempfile.TemporaryDirectory(prefix=".new-", dir=place) as temp:
            fresh = Path(temp)
            if not _download(left, fresh, note):
                note("waiting for the other build")
                with _building:
                    gobuild.build(left, cache=layout.cache, target=fresh, note=note)
            for name in names:
                (fresh / name).chmod(0o755)
                (fresh / name).rename(place / name)


def _link_found(layout: Layout, project: versions.Project, place: Path) -> bool:
    """Link programs of the right version from the user's folder or PATH; whether that gave all of them."""
    for name in missing(layout, project):
        named = layout.named_binaries / name if layout.named_binaries else None
        candidate = str(named) if named and named.exists() else shutil.which(name)
        if candidate and has_version(candidate, project):
            (place / name).symlink_to(Path(candidate).resolve())
    return not missing(layout, project)


def has_version(program: str, project: versions.Project) -> bool:
    """Whether a program says that it is of the project's version.

    CNI plugins print theirs only as part of the whole bundle, and kubectl needs an argument of its own.
    """
    flags = {"kubectl": ["version", "--client"], "kubeadm": ["version", "-o", "short"]}
    argv = [program, *flags.get(Path(program).name, [project.flag])]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    words = (done.stdout + done.stderr).replace("-", " ").replace(",", " ").split()
    return any(word.removeprefix("v") == project.version for word in words)


def _download(project: versions.Project, target: Path, note: Note) -> bool:
    """Fetch official Kubernetes release binaries; False where there is no way to the release server.

    Each file is checked against the checksum the release publishes beside it.
    """
    if project.name != "kubernetes" or not _reachable("dl.k8s.io"):
        return False
    base = f"{RELEASES}/v{project.version}/bin/linux/{architecture()}"
    try:
        for name in project.programs:
            note(f"downloading {name}")
            digest = _fetch(f"{base}/{name}.sha256").decode().split()[0]
            _fetch_to(f"{base}/{name}", target / name)
            with (target / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise LabError(f"{base}/{name} has SHA-256 {found}, its release says {digest}")
    except (urllib.error.URLError, OSError, IndexError):
        note("no release to be had, building")
        return False
    return True


def _reachable(host: str) -> bool:
    """Whether a connection to the host opens within seconds; a resolver that hangs counts as no."""
    answer: list[bool] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT).close()
        except OSError:
            return
        answer.append(True)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return bool(answer)


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read(1 << 20)


def _fetch_to(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)

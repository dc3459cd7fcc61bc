"""The settings of `nodelet-cri`: flags, the file behind `--config`, and their defaults.

A setting is known by its flag (`--cni-conf-dir`) and by the same word in the file (`cniConfDir`). Flags win
over the file, the file over the defaults. Anything unknown is an error that names it. Imports little on
purpose: it is read before the spawner starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from host.errors import InputError

RUNTIME_NAME = "nodelet-cri"
CGROUP_DRIVERS = ("auto", "cgroupfs", "systemd")
LOG_LEVELS = ("debug", "info", "warning", "error")
_MAX_CONFIG_BYTES = 1 << 20
_REPEATED = {"runtime_handlers": "runtime_handler", "cdi_spec_dirs": "cdi_spec_dir"}
"""Settings whose flag, given once for each, is in the singular."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything an operator can set; the words beside each type are its help text."""

    listen: Annotated[str, "address of the CRI socket (unix:///PATH)"] = "unix:///run/nodelet/cri.sock"
    root: Annotated[Path, "images and writable layers; survives a reboot"] = Path("/var/lib/nodelet/cri")
    state: Annotated[Path, "facts about running pods; best on tmpfs"] = Path("/run/nodelet/cri")
    cgroup_root: Annotated[Path, "where the cgroup hierarchies are mounted"] = Path("/sys/fs/cgroup")
    cgroup_driver: Annotated[str, "cgroupfs, systemd, or auto: systemd where it runs on cgroup2"] = "auto"
    cni_conf_dir: Annotated[Path, "CNI configuration; the first file by name is used"] = Path(
        "/etc/cni/net.d"
    )
    cni_bin_dir: Annotated[Path, "CNI plugins"] = Path("/opt/cni/bin")
    netns_dir: Annotated[Path, "where network namespaces of pods are bound"] = Path("/run/netns")
    registry_config_dir: Annotated[Path, "mirrors, one <host>/hosts.toml a registry"] = Path(
        "/etc/nodelet/registries.d"
    )
    seccomp_root: Annotated[Path, "folder that Localhost seccomp profiles must be in"] = Path(
        "/var/lib/kubelet/seccomp"
    )
    cdi_spec_dirs: Annotated[tuple[str, ...], "folder of CDI specifications; a later one wins"] = (
        "/etc/cdi",
        "/var/run/cdi",
    )
    runtime_handlers: Annotated[
        tuple[str, ...], "NAME=PATH[,--OPTION…] of an OCI runtime that a RuntimeClass may choose"
    ] = ()
    stream_address: Annotated[str, "HOST:PORT of exec, attach and port-forward streams"] = "127.0.0.1:0"
    max_concurrent_downloads: Annotated[int, "layers of one image that are fetched at a time"] = 3
    image_pull_progress_timeout: Annotated[int, "seconds without a byte after which a pull is given up"] = 300
    pinned_images: Annotated[tuple[str, ...], "image names that garbage collection leaves alone"] = ()
    log_level: Annotated[str, "debug, info, warning or error"] = "info"

    @property
    def socket_path(self) -> Path:
        """The path inside `listen`."""
        return Path(self.listen.removeprefix("unix://"))


def _flag(name: str) -> str:
    return "--" + _REPEATED.get(name, name).replace("_", "-")


def _key(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `InputError`, so that they all end as one line."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see nodelet-cri --help")


def parse(argv: Sequence[str]) -> Settings:
    """The settings for a command line (without the program's name).

    Raises:
        InputError: an unknown flag or key, a value of the wrong form, an unreadable file.
        SystemExit: after `--help` and `--version`.
    """
    parser = _Parser(
        prog="nodelet-cri",
        allow_abbrev=False,
        description="The CRI v1 runtime of nodelet. Needs root; without flags it serves the default socket.",
        epilog="Beside the running daemon: `nodelet-cri ps` shows pods and containers, `nodelet-cri image` "
        "pulls, imports, lists and removes images (see nodelet-cri image --help).",
        usage="nodelet-cri [flags] | nodelet-cri ps | nodelet-cri image VERB …",
    )
    parser.add_argument("--version", action="version", version=f"{RUNTIME_NAME} {version('nodelet')}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with these settings")
    hints = get_type_hints(Settings, include_extras=True)
    for item in fields(Settings):
        parser.add_argument(
            _flag(item.name),
            dest=item.name,
            metavar="VALUE",
            action="append" if isinstance(item.default, tuple) else "store",
            help=f"{hints[item.name].__metadata__[0]} (default: {_shown(item.default)})",
        )
    given = vars(parser.parse_args(list(argv)))
    path = given.pop("config")
    values = read_file(path) if path else {}
    values.update({name: value for name, value in given.items() if value is not None})
    return build(values)


def _shown(value: Any) -> str:
    return (",".join(value) or "none") if isinstance(value, tuple) else str(value).replace("%", "%%")


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a file, by attribute name and not yet checked.

    Raises:
        InputError: unreadable, not a mapping, or an unknown key.
    """
    import yaml

    from host.files import read_input

    try:
        content = yaml.safe_load(read_input(path, limit=_MAX_CONFIG_BYTES))
    except (yaml.YAMLError, RecursionError) as exc:
        raise InputError(f"{path} is not YAML: {str(exc).splitlines()[0]}") from exc
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold a mapping of settings")
    known = {_key(item.name): item.name for item in fields(Settings)}
    for key in content:
        if key not in known:
            raise InputError(f"{path}: unknown setting {key!r}; known are {', '.join(sorted(known))}")
    return {known[key]: value for key, value in content.items()}


def build(values: Mapping[str, Any]) -> Settings:
    """Settings from checked names and raw values.

    Raises:
        InputError: a value of the wrong type or form.
    """
    typed: dict[str, Any] = {}
    for item in fields(Settings):
        if item.name not in values:
            continue
        value = values[item.name]
        if item.name == "runtime_handlers" and isinstance(value, Mapping):
            value = [f"{name}={words}" for name, words in value.items()]
        if isinstance(item.default, tuple):
            if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
                raise InputError(f"{_key(item.name)} must be a list of strings")
            typed[item.name] = tuple(value)
        elif isinstance(item.default, int):
            typed[item.name] = _positive(_key(item.name), value)
        elif not isinstance(value, str):
            raise InputError(f"{_key(item.name)} must be a string, not {type(value).__name__}")
        elif isinstance(item.default, Path):
            if not value.startswith("/"):
                raise InputError(f"{_flag(item.name)} {value!r} must be an absolute path")
            typed[item.name] = Path(value)
        else:
            typed[item.name] = value
    settings = Settings(**typed)
    _check(settings)
    return settings


def _positive(key: str, value: Any) -> int:
    text = str(value) if isinstance(value, str) or type(value) is int else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
        raise InputError(f"{key} must be a whole number from 1 to 999999, not {value!r}")
    return int(text)


def _check(settings: Settings) -> None:
    if not settings.listen.startswith("unix:///"):
        raise InputError(f"--listen {settings.listen!r} must be unix:///PATH")
    if len(str(settings.socket_path).encode()) > 107:
        raise InputError(f"--listen {settings.listen!r} is longer than the 107 bytes of a socket path")
    if settings.log_level not in LOG_LEVELS:
        raise InputError(f"--log-level {settings.log_level!r} must be one of {', '.join(LOG_LEVELS)}")
    if settings.cgroup_driver not in CGROUP_DRIVERS:
        raise InputError(
            f"--cgroup-driver {settings.cgroup_driver!r} must be one of {', '.join(CGROUP_DRIVERS)}"
        )
    host_port(settings.stream_address)
    for folder in settings.cdi_spec_dirs:
        if not folder.startswith("/"):
            raise InputError(f"--cdi-spec-dir {folder!r} must be an absolute path")
    if settings.runtime_handlers:
        from cri.runtime.oci.handlers import parse_all

        parse_all(settings.runtime_handlers)


def host_port(address: str) -> tuple[str, int]:
    """Host and port of a stream address, which must be a loopback address: streams carry no password.

    Raises:
        InputError: another form, or not loopback.
    """
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "[::1]", "localhost") or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--stream-address {address!r} must be 127.0.0.1:PORT or [::1]:PORT")
    return host.strip("[]"), int(port)

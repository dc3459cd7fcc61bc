"""One execution of a CNI plugin: an executable in the plugin folder, or our own plugin in this process.

See "Section 2: Execution Protocol" of the CNI specification 1.1.0. Whatever a program does (hang, print junk,
end with a status and no word), the caller gets a `NetworkError` that names the plugin and the command.
"""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni import entry
from cni.errors import CniError
from host.errors import HostError, TimedOut
from host.helpers import run_async

_MAX_OUTPUT_BYTES = 4 << 20
_STDERR_TAIL = 500


class NetworkError(Exception):
    """A plugin failed, printed junk, or there is no usable configuration; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The parameters of one command (section 2, "Parameters"). Without a container: STATUS and GC."""

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Mapping[str, str] = field(default_factory=dict)


async def call(config: Mapping[str, Any], what: Call, *, bin_dir: Path, seconds: float) -> dict[str, Any]:
    """Let a plugin do one command; its result, {} where the command has none.

    A plugin of the type `nodelet-cni` is called in this process, with the input an executable would get.

    Args:
        config: what the plugin gets on standard input; `type` names it.
        what: the command and its parameters.
        bin_dir: where the executables are.
        seconds: how long an executable may take; then it and its children are killed.

    Raises:
        NetworkError: it failed, in its own words, or did not answer.
    """
    kind = config["type"]
    if kind != entry.PLUGIN_TYPE:
        return await _execute(config, what, bin_dir, seconds)
    try:
        return await asyncio.to_thread(
            entry.execute,
            what.command,
            config=config,
            container_id=what.container_id,
            netns=what.netns,
            ifname=what.ifname,
            args=what.args,
            path=str(bin_dir),
        )
    except CniError as exc:
        raise NetworkError(f"cni plugin {kind} {what.command}: {exc}") from exc


async def _execute(config: Mapping[str, Any], what: Call, bin_dir: Path, seconds: float) -> dict[str, Any]:
    kind = config["type"]
    variables = {"CNI_COMMAND": what.command, "CNI_PATH": str(bin_dir)}
    if what.container_id:
        variables |= {
            "CNI_CONTAINERID": what.container_id,
            "CNI_NETNS": what.netns,
            "CNI_IFNAME": what.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in what.args.items()),
        }
    try:
        done = await run_async(
            [str(_path(bin_dir, kind))],
            input=json.dumps(config).encode(),
            env=variables,
            timeout=seconds,
            check=False,
            max_output=_MAX_OUTPUT_BYTES,
        )
    except TimedOut as exc:
        raise NetworkError(f"cni plugin {kind} {what.command}: killed after {seconds:g} s") from exc
    except HostError as exc:
        raise NetworkError(f"cni plugin {kind} {what.command}: {exc}") from exc
    return _answer(kind, what.command, done.returncode, done.stdout, done.stderr)


def _answer(kind: str, command: str, code: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(stdout) if stdout.strip() else {}
    except (ValueError, RecursionError):
        answer = None
    if code != 0:
        words = answer.get("msg", "") if isinstance(answer, dict) else ""
        details = answer.get("details", "") if isinstance(answer, dict) else ""
        text = ": ".join(str(part) for part in (words, details) if part)
        text = text or stderr.decode(errors="replace").strip()[-_STDERR_TAIL:] or "no reason given"
        raise NetworkError(f"cni plugin {kind} {command} exited with {code}: {text}")
    if not isinstance(answer, dict):
        raise NetworkError(f"cni plugin {kind} {command} did not print a JSON object")
    return answer


def _path(bin_dir: Path, kind: str) -> Path:
    """The executable of a plugin, which only root may have been able to write."""
    path = bin_dir / kind
    try:
        found = path.stat()
    except OSError as exc:
        raise NetworkError(f"cni plugin {kind} not found in {bin_dir}") from exc
    if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise NetworkError(f"cni plugin {path} must be a regular file that only root can write")
    return path

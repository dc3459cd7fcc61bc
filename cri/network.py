"""The CNI runtime: which network configuration applies, and running its chain of plugins for a pod.

Follows the CNI specification 1.1.0, sections 2 (execution protocol) and 3 (execution of a configuration): ADD
runs the plugins in order and hands each the result so far, DEL runs them backwards and is repeatable. A
plugin of the type `nodelet-cni` is called in this process, with the input an executable would get.

Not for: making network namespaces (host/netns) and what a plugin does in them (cni/).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni import entry
from cni.errors import CniError
from host.errors import HostError, InputError
from host.failpoints import reach
from host.processes import run_async

IFNAME = "eth0"
NO_CONFIG = "cni config uninitialized"
_SUFFIXES = (".conflist", ".conf", ".json")
_TYPE = re.compile(r"[a-zA-Z0-9][\w.-]*")
_PLUGIN_TIMEOUT = 60.0
_MAX_CONFIG_BYTES = 1 << 20
_NEWEST = (1, 1, 0)


class NetworkError(Exception):
    """A plugin failed, printed junk, or there is no usable configuration; the message names it."""


@dataclass(frozen=True, kw_only=True)
class PodNetwork:
    """What the plugins are told about a pod."""

    sandbox_id: str
    netns: str
    """Path of the namespace; may be gone already at DEL."""
    namespace: str
    name: str
    uid: str
    port_mappings: tuple[Mapping[str, Any], ...] = ()
    """CNI's `portMappings` capability: hostPort, containerPort, protocol, hostIP."""
    dns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """CNI's `dns` capability: servers, searches, options."""

    @property
    def args(self) -> dict[str, str]:
        """CNI_ARGS as every Kubernetes runtime gives them."""
        return {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.name,
            "K8S_POD_INFRA_CONTAINER_ID": self.sandbox_id,
            "K8S_POD_UID": self.uid,
        }

    @property
    def capabilities(self) -> dict[str, Any]:
        """Values of every capability we can fill; a plugin gets those its configuration asks for."""
        values: dict[str, Any] = {}
        if self.port_mappings:
            values["portMappings"] = [dict(item) for item in self.port_mappings]
        if self.dns:
            values["dns"] = {key: list(value) for key, value in self.dns.items()}
        return values


def parse_conflist(raw: bytes, source: str) -> dict[str, Any]:
    """A network configuration list from a file's bytes; a single plugin's `.conf` becomes a list of one.

    Raises:
        InputError: not JSON, or a list without name, version or plugins of a safe type.
    """
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{source} is not JSON") from exc
    if not isinstance(config, dict):
        raise InputError(f"{source} must be a JSON object")
    if "plugins" not in config and "type" in config:
        config = {
            "name": config.get("name"),
            "cniVersion": config.get("cniVersion", "0.2.0"),
            "plugins": [config],
        }
    if not isinstance(config.get("name"), str) or not config["name"]:
        raise InputError(f"{source}: name must be a string")
    if not isinstance(config.get("cniVersion"), str):
        raise InputError(f"{source}: cniVersion must be a string")
    config["cniVersion"] = _negotiated(config, source)
    plugins = config.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise InputError(f"{source}: plugins must be a list with at least one plugin")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            raise InputError(f"{source}: plugin type {kind!r} must be a plain file name")
    return config


def _negotiated(config: Mapping[str, Any], source: str) -> str:
    """The newest version that both sides speak: "runtimes MUST select the highest supported version"
    from `cniVersions` (CNI 1.1.0, section 1). Without it there would be no GC for a list that begins with an
    older version for older runtimes."""
    offered = config.get("cniVersions", [])
    if not isinstance(offered, list) or not all(isinstance(item, str) for item in offered):
        raise InputError(f"{source}: cniVersions must be a list of strings")
    return max(
        (item for item in (config["cniVersion"], *offered) if _version(item) <= _NEWEST),
        key=_version,
        default=config["cniVersion"],
    )


def plugin_config(
    conflist: Mapping[str, Any],
    plugin: Mapping[str, Any],
    *,
    capabilities: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The configuration one plugin of the chain gets on its standard input (CNI section 3, derivation)."""
    wanted = plugin.get("capabilities") or {}
    runtime = {key: value for key, value in capabilities.items() if wanted.get(key)}
    derived = {key: value for key, value in plugin.items() if key != "capabilities"}
    derived |= {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    if runtime:
        derived["runtimeConfig"] = runtime
    if previous:
        derived["prevResult"] = previous
    return derived


def pod_ips(result: Mapping[str, Any]) -> list[str]:
    """The pod's addresses in a CNI result, without prefix length: those of `eth0`, or all when none says."""
    interfaces = result.get("interfaces") or []

    def on_pod(index: Any) -> bool:
        if not isinstance(index, int) or not 0 <= index < len(interfaces):
            return True
        return interfaces[index].get("name") == IFNAME and bool(interfaces[index].get("sandbox"))

    ips = [item for item in result.get("ips") or [] if on_pod(item.get("interface"))]
    return [str(item["address"]).split("/")[0] for item in ips]


class Network:
    """Finds the configuration and runs its plugins."""

    def __init__(self, *, conf_dir: Path, bin_dir: Path) -> None:
        """Both folders may be missing; they are looked at when needed."""
        self._conf_dir = conf_dir
        self._bin_dir = bin_dir
        self._stamp: tuple[str, int, int] | None = None
        self._conflist: dict[str, Any] | None = None

    def conflist(self) -> dict[str, Any]:
        """The configuration in force: the first file by name, read again only when it has changed.

        Raises:
            NetworkError: there is none, or the first one is wrong; the text is the reason of
            NetworkReady=false.
        """
        try:
            names = sorted(name for name in os.listdir(self._conf_dir) if name.endswith(_SUFFIXES))
        except OSError:
            names = []
        if not names:
            raise NetworkError(f"{NO_CONFIG}: no network configuration in {self._conf_dir}")
        path = self._conf_dir / names[0]
        try:
            found = path.stat()
            stamp = (str(path), found.st_mtime_ns, found.st_ino)
            if stamp != self._stamp or self._conflist is None:
                with path.open("rb") as file:
                    self._conflist = parse_conflist(file.read(_MAX_CONFIG_BYTES), str(path))
                self._stamp = stamp
        except OSError as exc:
            raise NetworkError(f"{NO_CONFIG}: cannot read {path}: {exc.strerror}") from exc
        except InputError as exc:
            raise NetworkError(f"{NO_CONFIG}: {exc}") from exc
        return self._conflist

    async def add(self, conflist: Mapping[str, Any], pod: PodNetwork) -> dict[str, Any]:
        """Connect a pod; the CNI result.

        Raises:
            NetworkError: a plugin failed; the caller then runs `delete`.
        """
        result: dict[str, Any] = {}
        for plugin in conflist["plugins"]:
            config = plugin_config(conflist, plugin, capabilities=pod.capabilities, previous=result or None)
            result = await self._call("ADD", config, pod) or result
            reach("network.plugin_added")
        if not pod_ips(result):
            raise NetworkError(f"network {conflist['name']} gave pod {pod.namespace}/{pod.name} no address")
        return result

    async def delete(self, conflist: Mapping[str, Any], pod: PodNetwork, result: Mapping[str, Any]) -> None:
        """Disconnect a pod. Repeatable, and fine when ADD never finished or the namespace is gone (CNI
        DEL)."""
        for plugin in reversed(conflist["plugins"]):
            config = plugin_config(conflist, plugin, capabilities=pod.capabilities, previous=result or None)
            await self._call("DEL", config, pod)
            reach("network.plugin_deleted")

    async def collect(self, conflist: Mapping[str, Any], valid: Sequence[str]) -> None:
        """Let the plugins drop what belongs to no sandbox of these ids any more (CNI GC, since 1.1.0)."""
        if _version(conflist["cniVersion"]) < _NEWEST:
            return
        attachments = [{"containerID": sandbox, "ifname": IFNAME} for sandbox in valid]
        pod = PodNetwork(sandbox_id="", netns="", namespace="", name="", uid="")
        for plugin in conflist["plugins"]:
            config = plugin_config(conflist, plugin, capabilities={}, previous=None)
            config["cni.dev/valid-attachments"] = attachments
            await self._call("GC", config, pod)

    async def _call(self, command: str, config: dict[str, Any], pod: PodNetwork) -> dict[str, Any]:
        kind = config["type"]
        if kind != entry.PLUGIN_TYPE:
            return await self._execute(command, config, pod)
        try:
            return await asyncio.to_thread(
                entry.execute,
                command,
                config=config,
                container_id=pod.sandbox_id,
                netns=pod.netns,
                ifname=IFNAME if pod.sandbox_id else "",
                args=pod.args,
                path=str(self._bin_dir),
            )
        except CniError as exc:
            raise NetworkError(f"cni plugin {kind} {command}: {exc}") from exc

    async def _execute(self, command: str, config: dict[str, Any], pod: PodNetwork) -> dict[str, Any]:
        program = _plugin_path(self._bin_dir, config["type"])
        variables = {"CNI_COMMAND": command, "CNI_PATH": str(self._bin_dir)}
        if pod.sandbox_id:
            variables |= {
                "CNI_CONTAINERID": pod.sandbox_id,
                "CNI_NETNS": pod.netns,
                "CNI_IFNAME": IFNAME,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.args.items()),
            }
        try:
            done = await run_async(
                [str(program)],
                input=json.dumps(config).encode(),
                env=variables,
                timeout=_PLUGIN_TIMEOUT,
                check=False,
            )
        except HostError as exc:
            raise NetworkError(f"cni plugin {config['type']} {command}: {exc}") from exc
        return _answer(config["type"], command, done.returncode, done.stdout, done.stderr)


def _answer(kind: str, command: str, code: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(stdout) if stdout.strip() else {}
    except (ValueError, RecursionError):
        answer = None
    if code != 0:
        words = answer.get("msg", "") if isinstance(answer, dict) else ""
        details = answer.get("details", "") if isinstance(answer, dict) else ""
        text = ": ".join(filter(None, (words, details))) or stderr.decode(errors="replace").strip()[-500:]
        raise NetworkError(f"cni plugin {kind} {command} exited with {code}: {text or 'no reason given'}")
    if not isinstance(answer, dict):
        raise NetworkError(f"cni plugin {kind} {command} did not print a JSON object")
    return answer


def _plugin_path(bin_dir: Path, kind: str) -> Path:
    """The executable of a plugin, which only root may have been able to write."""
    path = bin_dir / kind
    try:
        found = path.stat()
    except OSError as exc:
        raise NetworkError(f"cni plugin {kind} not found in {bin_dir}") from exc
    if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise NetworkError(f"cni plugin {path} must be a regular file that only root can write")
    return path


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))

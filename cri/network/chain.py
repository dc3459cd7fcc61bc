"""Running all plugins of a network configuration: ADD in order, DEL backwards, STATUS and GC of every one.

See "Section 3: Execution of Network Configurations" of the CNI specification 1.1.0. What libcni keeps in
/var/lib/cni/results, the configuration and the result of ADD, is in the sandbox's record: DEL gets both from
there, whatever the configuration folder says by then.

Not for: making network namespaces (host/netns) and what a plugin does in them (cni/).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cri.network.attachment import IFNAME, PodNetwork, pod_ips
from cri.network.config import NEWEST, ConfigFolder, plugin_config, version_of
from cri.network.plugin import Call, NetworkError, call
from host import netns
from host.errors import HostError
from host.failpoints import reach

_PLUGIN_SECONDS = 60.0
"""Well below the two minutes a kubelet waits for RunPodSandbox (runtimeRequestTimeout)."""
_STATUS_SECONDS = 5.0
_STATUS_HOLDS_SECONDS = 10.0
"""How long a good STATUS is believed: kubelets ask for the runtime's status every 5 s."""


class Network:
    """Finds the configuration and runs its plugins."""

    def __init__(
        self,
        *,
        conf_dir: Path,
        bin_dir: Path,
        plugin_seconds: float = _PLUGIN_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Both folders may be missing; they are looked at when needed. `plugin_seconds` is for one plugin."""
        self._folder = ConfigFolder(conf_dir)
        self._bin_dir = bin_dir
        self._plugin_seconds = plugin_seconds
        self._monotonic = monotonic
        self._good: tuple[Mapping[str, Any] | None, float] = (None, 0.0)

    def conflist(self) -> dict[str, Any]:
        """The configuration in force. Raises NetworkError where there is none that can be used."""
        return self._folder.conflist()

    async def status(self) -> dict[str, Any]:
        """The configuration in force, once all its plugins are ready for ADD (CNI STATUS, since 1.1.0).

        Raises:
            NetworkError: there is no configuration, or a plugin is not ready; the reason of
            NetworkReady=false.
        """
        conflist = self.conflist()
        asked, until = self._good
        now = self._monotonic()
        if version_of(conflist["cniVersion"]) < NEWEST or (asked is conflist and now < until):
            return conflist
        seconds = min(_STATUS_SECONDS, self._plugin_seconds)
        for plugin in conflist["plugins"]:
            config = plugin_config(conflist, plugin, capabilities={}, previous=None)
            await call(config, Call(command="STATUS"), bin_dir=self._bin_dir, seconds=seconds)
        self._good = (conflist, now + _STATUS_HOLDS_SECONDS)
        return conflist

    async def add(self, conflist: Mapping[str, Any], pod: PodNetwork) -> dict[str, Any]:
        """Connect a pod; the CNI result.

        Raises:
            NetworkError: a plugin failed; the caller then runs `delete`, for all plugins: each cleans up
            what it may have made, the later ones nothing.
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
        DEL): then plugins get no CNI_NETNS, because those of others fail on a path that leads nowhere.

        Raises:
            NetworkError: a plugin failed; those before it in the list have not run, as the specification
            wants it, and the whole is to be tried again.
        """
        where = pod.netns if _is_netns(pod.netns) else ""
        for plugin in reversed(conflist["plugins"]):
            config = plugin_config(conflist, plugin, capabilities=pod.capabilities, previous=result or None)
            await self._call("DEL", config, pod, where)
            reach("network.plugin_deleted")

    async def collect(self, conflist: Mapping[str, Any], valid: Sequence[str]) -> None:
        """Let the plugins drop what belongs to no sandbox of these ids any more (CNI GC, since 1.1.0).

        Raises:
            NetworkError: what plugins failed with, once all have had their turn.
        """
        if version_of(conflist["cniVersion"]) < NEWEST or conflist.get("disableGC"):
            return
        attachments = [{"containerID": sandbox, "ifname": IFNAME} for sandbox in valid]
        failures = []
        for plugin in conflist["plugins"]:
            config = plugin_config(conflist, plugin, capabilities={}, previous=None)
            config["cni.dev/valid-attachments"] = attachments
            config["cni.dev/attachments"] = attachments  # as plugins built with libcni 1.2.0 to 1.2.2 read it
            try:
                await call(config, Call(command="GC"), bin_dir=self._bin_dir, seconds=self._plugin_seconds)
            except NetworkError as exc:
                failures.append(str(exc))
        if failures:
            raise NetworkError("; ".join(failures))

    async def _call(
        self, command: str, config: dict[str, Any], pod: PodNetwork, where: str | None = None
    ) -> dict[str, Any]:
        what = Call(
            command=command,
            container_id=pod.sandbox_id,
            netns=pod.netns if where is None else where,
            ifname=IFNAME,
            args=pod.args,
        )
        return await call(config, what, bin_dir=self._bin_dir, seconds=self._plugin_seconds)


def _is_netns(path: str) -> bool:
    try:
        os.close(netns.open_netns(path))
    except HostError:
        return False
    return True

"""The plugin's one entry: a CNI command with its parameters in, the CNI result object out.

`nodelet-cni` (cni.main) calls it with what it read from the environment and stdin; `nodelet-cri` calls it
in-process when the configuration names our own plugin. Same input, same result (CNI specification 1.1.0).

Not for: choosing and chaining plugins, which is the runtime's part of the specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLUGIN_TYPE = "nodelet-cni"
"""The `type` by which a network configuration names this plugin."""


def execute(
    command: str,
    *,
    config: Mapping[str, Any],
    container_id: str = "",
    netns: str = "",
    ifname: str = "",
    args: Mapping[str, str] | None = None,
    path: str = "",
) -> dict[str, Any]:
    """Runs ADD, DEL, CHECK, GC, STATUS or VERSION and returns the result object ({} where CNI has none).

    `config` is the plugin's network configuration as a runtime hands it over on stdin: the plugin's object
    from the conflist plus `name`, `cniVersion`, and where they apply `runtimeConfig` (e.g. `portMappings`),
    `prevResult` and `cni.dev/valid-attachments` (GC). `netns` is a path (may be '' for DEL); `args` are the
    pairs of CNI_ARGS (K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID, …); `path` is CNI_PATH.

    Blocks for some milliseconds: call it from a thread (asyncio.to_thread); calls may run in parallel.
    Works on the network namespace of the calling thread (the node's). Raises cni.errors.CniError, whose
    `.to_dict()` is the error object of the specification. DEL is idempotent and works without netns.
    """
    raise NotImplementedError

"""Values that no container can have. Pure; refused by name before anything of the container exists."""

from __future__ import annotations

import re

from cri.server.field_check import check_name, check_path, check_size
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

_CPUSET = re.compile(r"(\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*)?")
_OR_UNLIMITED = ("memory_limit_in_bytes", "memory_swap_limit_in_bytes", "cpu_quota")
"""Here -1 means no limit (OCI runtime-spec, config-linux.md)."""
_POSITIVE = ("cpu_period", "cpu_shares")
_OOM_SCORE_ADJ = 1000
_CPU_MICROSECONDS = {"cpu_period": (1000, 1_000_000), "cpu_quota": (1000, (1 << 44) - 1)}
"""What the scheduler takes (kernel/sched/core.c, tg_set_cfs_bandwidth); 0 and -1 are no limit."""
_MODES = {
    "network": (pb.POD, pb.NODE),
    "pid": (pb.POD, pb.CONTAINER, pb.NODE, pb.TARGET),
    "ipc": (pb.POD, pb.NODE),
}
"""CONTAINER makes sense for processes alone; a pod has one network and one IPC namespace."""


def check_values(config: pb.ContainerConfig) -> None:
    """Refuse paths, signals and limits that make no sense.

    Raises:
        InputError: the message names the field.
    """
    check_size(config)
    check_name("metadata.name", config.metadata.name)
    check_path("log_path", config.log_path)
    _check_namespaces(config.linux.security_context.namespace_options)
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InputError(f"working_dir {config.working_dir[:80]!r} must be absolute")
    if config.stop_signal not in pb.Signal.values():
        raise InputError(f"stop_signal {config.stop_signal} is not one of CRI's signals")
    security = config.linux.security_context
    for name in ("masked_paths", "readonly_paths"):
        for path in getattr(security, name):
            if not path.startswith("/") or "\0" in path:
                raise InputError(f"{name}: {path[:80]!r} must be absolute")
    check_resources(config.linux.resources)


def _check_namespaces(options: pb.NamespaceOption) -> None:
    for name, known in _MODES.items():
        if (mode := getattr(options, name)) not in known:
            words = ", ".join(pb.NamespaceMode.Name(item) for item in known)
            raise InputError(f"namespace_options.{name} {mode} of a container must be one of {words}")


def check_resources(resources: pb.LinuxContainerResources) -> None:
    """Refuse limits that no cgroup can have; 0 means not given.

    Raises:
        InputError: the message names the field.
    """
    for names, least in ((_OR_UNLIMITED, -1), (_POSITIVE, 0)):
        for name in names:
            if (value := getattr(resources, name)) < least:
                raise InputError(f"{name} {value} must be {least} or more")
    for name, (low, high) in _CPU_MICROSECONDS.items():
        if (value := getattr(resources, name)) > 0 and not low <= value <= high:
            raise InputError(f"{name} {value} is not {low} to {high} microseconds")
    if abs(resources.oom_score_adj) > _OOM_SCORE_ADJ:
        raise InputError(
            f"oom_score_adj {resources.oom_score_adj} is not -{_OOM_SCORE_ADJ} to {_OOM_SCORE_ADJ}"
        )
    for name in ("cpuset_cpus", "cpuset_mems"):
        if not _CPUSET.fullmatch(value := getattr(resources, name)):
            raise InputError(f"{name} {value[:80]!r} is not a list such as 0-3,7")

"""The one place that touches the machine for all three programs.

Processes, files, clocks, system calls, network namespaces, netlink, rules and cgroups. Nothing here knows
Kubernetes, CRI or CNI; what leaves this package as an error is a `host.errors.HostError`.
"""

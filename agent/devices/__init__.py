"""Devices of plugins (example.com/gpu): who registers, what is healthy, and which container has which.

    plugin ──Register──> registration ──> DeviceManager ──> Node capacity and allocatable
       ▲                                    │     ▲
       └── ListAndWatch, Allocate, … ── plugin    └── pods: admission reserves, a container's start allocates

`allocate` decides, `records` remembers on disk, `grants` says in CRI's terms what a plugin gave. Topology and
NUMA nodes are not looked at, and health is not in the pod's status.

Source: the device plugin API v1beta1; pkg/kubelet/cm/devicemanager (v1.37).
"""

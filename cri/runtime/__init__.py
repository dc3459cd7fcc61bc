"""Sandboxes and containers made from namespaces, cgroups and mounts, with no other runtime underneath.

    nodelet-cri          client.Runtime, spec, seccomp, security: asyncio, may import anything
     └ spawner           forks one supervisor per pod on request; imports little; exec'd before gRPC is loaded
        └ supervisor     holds the pod's namespaces, starts containers, pumps their logs, records their exits
           └ init        prepares the root file system, waits for the start message, becomes the container

What runs below nodelet-cri (spawner, supervisor, pump, init, rootfs, mounts, identity, wire, record) imports
only small C modules of the standard library and `host.syscalls`: it is forked once per pod, and an import
after pivot_root would run the image's code as root.
"""

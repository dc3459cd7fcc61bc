"""External OCI runtimes (crun, runc, any with that command line) as RuntimeClass handlers of a pod.

    nodelet-cri          handlers (settings, features), config (ContainerSpec to config.json), seccomp
     └ supervisor        container, execution, commands, console: as `cri.runtime` has for its own
        └ bundle         in a mount namespace of its own: root, volumes, config.json, then the runtime

The supervisor stays what it is: it holds the namespaces, pumps logs, reaps, and records exits. It executes
`create` and `start` when StartContainer comes (a runtime looks for the program in `create` already), and
`exec` and `kill` when asked; nodelet-cri executes `delete --force` when the container is removed, so that it
happens after a crash as well. Root, volumes and user are prepared by the same code as for our own containers;
what is mounted for them exists only in the mount namespace of `create`, and never on the node.

The state folder of a container is its bundle; the runtime's own state (`--root`) is the folder `oci` in it.
"""

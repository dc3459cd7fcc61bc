"""`python -m deploy.labkit`: the verbs of `deploy/lab`, once everything it needs is installed."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from deploy.labkit import cgroups, cli, controlplane, gobuild, images, machines, nodes, processes
from deploy.labkit.api import connect, wait_for
from deploy.labkit.errors import LabError
from deploy.labkit.lab import Lab
from deploy.labkit.layout import CONTROL, SWITCH, Layout
from deploy.labkit.progress import Progress

APP_NODE_PORT = 30080


def up(lab: Lab, args: argparse.Namespace) -> int:
    """Start or repair, then show what is there and what the sample app answers."""
    with lab.locked():
        lab.up(count=args.nodes, app=not args.no_app)
    print(lab.kubectl("get", "nodes,pods,services", "--all-namespaces", "--output=wide"))
    if args.nodes and not args.no_app:
        show_app(lab)
    print(
        f"\nnext: deploy/lab {lab.layout.option}kubectl get pods -A   |   deploy/lab {lab.layout.option}down",
        flush=True,
    )
    return 0


def show_app(lab: Lab) -> None:
    """Ask the sample app the ways a user would: by Service address, by node port, and by name from a pod."""
    address = lab.kubectl("get", "service", "hello", "--output=jsonpath={.spec.clusterIP}")
    first, *_ = nodes.known(lab.layout)
    ways: list[tuple[str, str, tuple[str, int]]] = [
        (f"Service {address} from node {first.name}", first.name, (address, 80)),
        *(
            (f"node port of {node.name} from outside the cluster", SWITCH, (node.address, APP_NODE_PORT))
            for node in nodes.known(lab.layout)
            if node.kind == "nodelet"
        ),
    ]
    for title, machine, target in ways:
        print(f"\n{title}:")
        for answer in sorted({ask(lab, machine, target) for _ in range(12)}):
            print(f"  {answer}")
    print("\nhttp://hello from a pod:")
    answer = lab.kubectl("exec", "deployment/hello", "--", "wget", "-q", "-O-", "http://hello")
    print(f"  {answer.strip()}")


def ask(lab: Lab, machine: str, target: tuple[str, int]) -> str:
    """One HTTP request from inside a machine; the body of the answer.

    Raises:
        LabError: no answer within seconds (rules may be under way just after a start).
    """
    answers: list[str] = []

    def attempt() -> bool:
        with connect(lab.machine(machine).netns, target, timeout=2.0) as sock:
            answers.append(_fetch(sock, target[0]))
        return True

    wait_for(f"an answer of {target[0]}:{target[1]} to {machine}", attempt, seconds=20)
    return answers[-1]


def _fetch(sock: socket.socket, host: str) -> str:
    sock.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data.partition(b"\r\n\r\n")[2].decode(errors="replace").strip()


def down(lab: Lab, _: argparse.Namespace) -> int:
    """End everything."""
    with lab.locked():
        lab.down()
    return 0


def status(lab: Lab, _: argparse.Namespace) -> int:
    """Machines and their programs, then the Nodes; status 3 when something that should run does not."""
    lacking = 0
    everyone = nodes.known(lab.layout)
    plan = {
        SWITCH: [],
        CONTROL: [service.name for service in controlplane.services(lab.layout)],
        **{node.name: [service.name for service in nodes.services(lab.layout, node)] for node in everyone},
    }
    for machine, names in plan.items():
        shown = []
        for name in [machines.HOLDER, *names]:
            found = lab.records.read(machine, name)
            alive = found is not None and processes.alive(found)
            lacking += not alive
            shown.append(f"{name} ({found.pid})" if found and alive else f"{name} (not running)")
        print(f"{machine:10} {', '.join(shown)}")
    if lacking:
        print(f"{lacking} programs are not running; start them with: deploy/lab {lab.layout.option}up")
        return 3
    print(lab.kubectl("get", "nodes", "--output=wide"), end="")
    return 0


def kubectl(lab: Lab, args: argparse.Namespace) -> NoReturn:
    """Become kubectl."""
    argv, env = lab.kubectl_command(args.arguments)
    _become(argv, env)


def node(lab: Lab, args: argparse.Namespace) -> int:
    """Add or remove one node."""
    with lab.locked():
        if args.action == "add":
            lab.add_node(args.node, kind=args.kind)
        else:
            lab.remove_node(args.node)
    return 0


def shell(lab: Lab, args: argparse.Namespace) -> NoReturn:
    """Become a shell or a command inside a machine; what it leaves behind ends with the machine."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    machine = lab.machine(args.node)
    for place in cgroups.joined(lab.layout.node_cgroup(args.node)):
        (place / "cgroup.procs").write_text(str(os.getpid()))
    env = {
        "PATH": f"{Path(sys.executable).parent}:{lab.layout.kubectl.parent}:{processes.CLEAN_PATH}",
        "CONTAINER_RUNTIME_ENDPOINT": nodes.CRI_SOCKET,
        "PS1": rf"\u@{args.node}:\w\$ ",
    }
    if args.node == CONTROL:
        env["KUBECONFIG"] = str(lab.layout.kubeconfigs / "admin.conf")
    _become([*machine.enter(), *(command or ["/bin/bash", "--norc"])], env)


def _become(argv: Sequence[str], env: dict[str, str]) -> NoReturn:
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    sys.stdout.flush()
    os.execvpe(argv[0], list(argv), {**own, **env})


def logs(lab: Lab, args: argparse.Namespace) -> int:
    """Print one program's log, or all of a machine's, oldest first in each."""
    folder = lab.layout.logs / args.node
    if not folder.is_dir() and args.node not in cli.RESERVED:
        nodes.find(lab.layout, args.node)
    found = sorted(folder.glob(f"{args.program or '*'}.log"))
    if not found:
        there = ", ".join(path.stem for path in sorted(folder.glob("*.log"))) or "none"
        raise LabError(f"no log of {args.program or 'anything'} on {args.node}; there is: {there}")
    argv = ["tail", "-n", "+1", *(["-F"] if args.follow else []), *map(str, found)]
    _become(argv, {})


def push(lab: Lab, args: argparse.Namespace) -> int:
    """Pack a folder into the lab's registry."""
    folder = Path(args.directory)
    if not folder.is_dir():
        raise LabError(f"{folder} is no folder")
    image = args.image or f"docker.io/library/{folder.resolve().name}"
    # A colon before the last slash belongs to a registry's port, not to a tag.
    path, slash, last = image.rpartition("/")
    last, _, tag = last.partition(":")
    name = path + slash + last
    try:
        digest = images.push_directory(lab.layout.registry, folder, name, tags=[tag or "latest"])
    except (OSError, ValueError) as exc:
        raise LabError(f"cannot pack {folder}: {exc}") from exc
    print(f"{name}:{tag or 'latest'}@{digest}")
    return 0


VERBS: dict[str, Callable[[Lab, argparse.Namespace], int]] = {
    "up": up,
    "down": down,
    "status": status,
    "kubectl": kubectl,
    "node": node,
    "shell": shell,
    "logs": logs,
    "push": push,
}


def _terminated(*_: object) -> None:
    gobuild.cancel()
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; errors are one line."""
    args = cli.parse(argv)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, _terminated)
    lab = Lab(Layout(name=args.name), Progress())
    try:
        return VERBS[args.verb](lab, args)
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        again = f"deploy/lab {lab.layout.option}"
        print(f"\nlab: interrupted; `{again}up` goes on, `{again}down` removes all", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

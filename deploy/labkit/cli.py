"""The command line of `deploy/lab`. Standard library only: it is read before anything is installed."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?")
RESERVED = ("switch", "control")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog.split()[0]} --help)\n")


def lab_name(text: str) -> str:
    """A lab's or a node's name: it becomes part of device and cgroup names, so it is short."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: 1 to 12 of a-z, 0-9 and -, no - at the ends")
    return text


def node_name(text: str) -> str:
    """A lab name that is not one of the two machines every lab has."""
    if lab_name(text) in RESERVED:
        raise argparse.ArgumentTypeError(f"{text!r} is the name of the lab's own {text} machine")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 50:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of nodes between 0 and 50")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """All verbs with their help texts."""
    top = _Parser(
        prog="deploy/lab",
        description="A Kubernetes cluster on this machine: a control plane and nodelet nodes, each in "
        "namespaces of its own, joined by a switch that has no way out. Installs and builds what is missing.",
        epilog="Settings by environment: NODELET_LAB_NAME, NODELET_LAB_CACHE (default "
        "/var/cache/nodelet/lab), NODELET_LAB_BIN (a folder with ready binaries of the right versions).",
        allow_abbrev=False,
    )
    top.add_argument(
        "--name", type=lab_name, default=os.environ.get("NODELET_LAB_NAME") or "lab", help="which lab (lab)"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, allow_abbrev=False)

    up = verb("up", "start the lab, or repair it; ends when the sample app answers")
    up.add_argument("--nodes", type=_count, default=2, help="nodes n1, n2, … (2)")
    up.add_argument("--no-app", action="store_true", help="leave out the sample app")
    verb("down", "end and remove everything of the lab")
    verb("status", "show machines, programs and nodes")
    verb("kubectl", "run kubectl as the cluster's administrator, with all that follows")
    node = verb("node", "add or remove a node")
    node.add_argument("action", choices=("add", "remove"))
    node.add_argument("node", type=node_name, metavar="NAME")
    kind = node.add_mutually_exclusive_group()
    kind.add_argument(
        "--stock",
        dest="kind",
        action="store_const",
        const="stock",
        default="nodelet",
        help="kubelet, containerd, runc, the reference plugins and flannel",
    )
    kind.add_argument(
        "--kubelet",
        dest="kind",
        action="store_const",
        const="kubelet",
        help="kubelet and kube-proxy with nodelet-cri and nodelet-cni",
    )
    shell = verb("shell", "a shell, or a command, inside a machine (a node, control, switch)")
    shell.add_argument("node", type=lab_name, metavar="NODE")
    shell.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    logs = verb("logs", "print the log of a program, or of all programs of a machine")
    logs.add_argument("node", type=lab_name, metavar="NODE")
    logs.add_argument("program", nargs="?")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")
    push = verb("push", "pack a folder with rootfs/ and image.toml as an image into the lab's registry")
    push.add_argument("directory", metavar="IMAGE-DIR")
    push.add_argument("image", nargs="?", help="its name (docker.io/library/<folder name>:latest)")
    return top


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of one call; a wrong one ends the program with one line and status 2.

    What follows `kubectl` is kubectl's: argparse would take options there for the lab's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    split = _verb_index(words)
    rest = words[split + 1 :] if words[split : split + 1] == ["kubectl"] else []
    args = parser().parse_args(words[: len(words) - len(rest)])
    if args.verb == "kubectl":
        args.arguments = rest
    return args


def _verb_index(words: Sequence[str]) -> int:
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] == "--name" else 1
    return index


if __name__ == "__main__":
    parse(sys.argv[1:])

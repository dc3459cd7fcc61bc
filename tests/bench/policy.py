"""How long a change takes until a network policy is in force: 1,000 policies, 200 pods of this node.

Everything happens in a network namespace that goes away with the process. A change is planned, and written
to the kernel by nft; the figures are medians. There is no stock column: kube-proxy and flannel have no
policies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from agent.policy.kernel import NftKernel
from agent.policy.model import Allow, Peers, Policy, Port
from agent.policy.objects import PodFact
from agent.policy.picture import Picture
from agent.policy.selectors import EVERYTHING, Selector
from deploy.labkit.layout import Layout
from host import syscalls
from tests.bench.report import Figure

POLICIES, PODS, APPS, TURNS = 1000, 200, 50, 15


def pod(number: int, *, app: int | None = None) -> PodFact:
    """Pod `number` of this node, of one of 50 applications."""
    chosen = number % APPS if app is None else app
    return PodFact(
        uid=f"pod-{number}",
        namespace="default",
        name=f"pod-{number}",
        labels={"app": f"app-{chosen}", "tier": "web"},
        ips=(f"10.1.{number // 250}.{number % 250 + 1}", f"fd00:1::{number + 1:x}"),
        ports=(("TCP", "http", 8080),),
        local=True,
    )


def policy(number: int) -> Policy:
    """Policy `number`: one application may be reached by another one, on a number and on a named port."""
    subject, peer = _app(number), _app(number * 7 + 1)
    allow = Allow(
        (Peers("default", None, peer), Peers("", EVERYTHING, peer)),
        (Port("TCP", 80 + number, 80 + number), Port("TCP", name="http")),
    )
    return Policy(f"default/policy-{number}", "default", subject, (allow,), (allow,))


def _app(number: int) -> Selector:
    return Selector((("app", "In", (f"app-{number % APPS}",)),))


def run(layout: Layout, *, say: Callable[[str], None]) -> list[Figure]:
    """The figures."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    kernel, picture = NftKernel(), Picture()

    def write(whole: bool = False) -> None:
        elements = None if whole else picture.table.element_changes()
        text = picture.table.whole() if whole else picture.table.changes()
        picture.table.mark_written()
        if elements is None:
            kernel.write(text)
        else:
            kernel.write_elements(elements)

    def median(change: Callable[[int], None]) -> float:
        return statistics.median(
            _milliseconds(lambda turn=turn: (change(turn), write())) for turn in range(TURNS)
        )

    def fill() -> None:
        for number in range(PODS):
            picture.put_pod(pod(number))
        for number in range(POLICIES):
            picture.put_policy(policy(number))

    say(f"{POLICIES} policies, {PODS} pods")
    planned = _milliseconds(fill)
    full = _milliseconds(lambda: write(whole=True))
    checked = _milliseconds(lambda: kernel.differs(picture.table.content))
    labelled = median(lambda turn: picture.put_pod(pod(7, app=turn)))
    started = median(lambda turn: picture.put_pod(pod(PODS + turn)))
    ended = median(lambda turn: picture.drop_pod(f"pod-{PODS + turn}"))
    changed = median(lambda turn: picture.put_policy(policy(turn * 13 + 1) if turn % 2 else _open(turn)))
    return [
        Figure(what="one pod more, in force", ours=started, stock=None, unit="ms"),
        Figure(what="one pod less", ours=ended, stock=None, unit="ms"),
        Figure(what="one pod with another label, in force", ours=labelled, stock=None, unit="ms"),
        Figure(what="one policy changed, in force", ours=changed, stock=None, unit="ms"),
        Figure(what="all of it planned from nothing", ours=planned, stock=None, unit="ms"),
        Figure(what="all of it written in one transaction", ours=full, stock=None, unit="ms"),
        Figure(what="all of it read and compared", ours=checked, stock=None, unit="ms"),
    ]


def _open(turn: int) -> Policy:
    return Policy(f"default/policy-{turn * 13 + 14}", "default", _app(turn), (Allow(None, None),), None)


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3

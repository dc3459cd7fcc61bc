"""iptables on a real kernel: exactly once, only ours, and all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host import netns, processes
from host.processes import ProcessFailed
from host.rules import iptables
from host.rules.iptables import Jump, TableChange

CHAINS = [TableChange("nat", {"OURS": ["-d 10.0.0.0/8 -j RETURN", "-j MASQUERADE --random-fully"]})]
JUMP = Jump("nat", "POSTROUTING", '-s 10.0.0.0/24 -m comment --comment "our jump" -j OURS')


@pytest.fixture
def inside(new_netns: Callable[[str], Path]) -> Callable[[Callable[[], Any]], Any]:
    """Runs something in a fresh network namespace."""
    path = new_netns("n")
    return lambda work: netns.run_in(path, work)


def nat() -> dict[str, list[str]]:
    return iptables.parse_save(iptables.save("nat")).get("nat", {})


def test_written_once_and_then_left_alone(inside: Any) -> None:
    assert inside(lambda: iptables.ensure(CHAINS, [JUMP])) is True
    assert inside(lambda: iptables.ensure(CHAINS, [JUMP])) is False
    assert inside(nat)["POSTROUTING"] == [JUMP.rule]
    assert inside(lambda: iptables.read_chain("nat", "OURS")) == CHAINS[0].chains["OURS"]
    assert inside(lambda: iptables.read_chain("nat", "NOBODYS")) is None


def test_mended_after_strangers_meddled(inside: Any) -> None:
    inside(lambda: iptables.ensure(CHAINS, [JUMP]))
    before = inside(nat)
    for command in (["-F"], ["-A", "POSTROUTING", "-j", "OURS"], ["-A", "OURS", "-j", "ACCEPT"]):
        inside(lambda command=command: processes.run(["iptables", "-t", "nat", *command]))
        assert inside(lambda: iptables.ensure(CHAINS, [JUMP])) is True
        assert inside(nat) == before


def test_foreign_rules_stay(inside: Any) -> None:
    inside(lambda: processes.run(["iptables", "-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT"]))
    before = inside(nat)
    inside(lambda: iptables.ensure(CHAINS, [JUMP]))
    inside(lambda: iptables.remove({"nat": ["OURS"]}))
    assert inside(nat) == before
    inside(lambda: iptables.remove({"nat": ["OURS"]}))


def test_a_bad_rule_changes_nothing(inside: Any) -> None:
    inside(lambda: iptables.ensure(CHAINS, [JUMP]))
    before = inside(nat)
    bad = [TableChange("nat", {"OURS": [], "MORE": ["-j NO-SUCH-TARGET"]})]
    with pytest.raises(ProcessFailed):
        inside(lambda: iptables.restore(iptables.render(bad)))
    assert inside(nat) == before


def test_comments_come_back_as_written(inside: Any) -> None:
    rule = f"-m comment --comment {iptables.quote('pod é; `reboot` $(x) | y')} -j RETURN"
    inside(lambda: iptables.ensure([TableChange("filter", {"OURS": [rule]})]))
    assert inside(lambda: iptables.ensure([TableChange("filter", {"OURS": [rule]})])) is False


def test_back_end(inside: Any) -> None:
    found = inside(iptables.back_end)
    assert found.kind in ("nft", "legacy") and found.other_rules == 0

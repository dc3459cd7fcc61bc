"""Elements written by our own messages, read back by nft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from host import netns
from host.errors import HostError, InputError, NotFound
from host.rules import nft, nftelements
from host.rules.nft import TableState
from host.rules.nftelements import Change


@pytest.fixture
def table(new_netns: Callable[[str], Path]) -> tuple[Path, TableState]:
    state = TableState("inet", "mine")
    state.put_chain("one", ["drop"])
    state.put_chain("two", ["accept"])
    for family, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        state.put_set(f"peers-{family}", kind)
        state.put_set(f"alone-{family}", f"{kind} . {kind}")
        state.put_set(f"pods-{family}", f"{kind} : verdict")
    where = new_netns("node")
    netns.run_in(where, lambda: nft.apply(state.whole()))
    state.mark_written()
    return where, state


def write(where: Path, state: TableState) -> None:
    changes = state.element_changes()
    assert changes is not None
    netns.run_in(where, lambda: nftelements.apply("mine", changes))
    state.mark_written()
    assert netns.run_in(where, lambda: nft.read("inet", "mine")) == state.content


def test_elements_of_every_kind_come_change_and_go(table: tuple[Path, TableState]) -> None:
    where, state = table
    for family, ip in ((4, "10.1.0.{}"), (6, "fd00::{}")):
        for number in range(1, 4):
            one = ip.format(number)
            state.add(f"peers-{family}", one)
            state.add(f"alone-{family}", f"{one} . {one}")
            state.add(f"pods-{family}", f"{one} : goto one")
    write(where, state)
    for family, one in ((4, "10.1.0.2"), (6, "fd00::2")):
        state.remove(f"pods-{family}", f"{one} : goto one")
        state.add(f"pods-{family}", f"{one} : goto two")
        state.remove(f"peers-{family}", one)
    write(where, state)
    assert state.element_changes() == []
    netns.run_in(where, lambda: nftelements.apply("mine", []))


def test_a_batch_is_all_or_nothing(table: tuple[Path, TableState]) -> None:
    where, state = table
    good = Change("peers-4", "10.1.0.1")
    for bad, error in (
        (Change("peers-4", "10.9.9.9", remove=True), NotFound),
        (Change("nobody", "10.1.0.1"), NotFound),
        (Change("pods-4", "10.1.0.1 : goto nowhere"), NotFound),
        (Change("peers-4", "fd00::1"), HostError),
        (Change("peers-4", "web"), InputError),
        (Change("pods-4", "10.1.0.1 : accept"), InputError),
    ):
        with pytest.raises(error):
            netns.run_in(where, lambda bad=bad: nftelements.apply("mine", [good, bad]))
        assert netns.run_in(where, lambda: nft.read("inet", "mine")) == state.content


def test_only_elements_are_elements(table: tuple[Path, TableState]) -> None:
    _, state = table
    state.add("peers-4", "10.1.0.1")
    assert state.element_changes() == [Change("peers-4", "10.1.0.1")]
    state.put_chain("one", ["drop"])
    assert state.element_changes() is not None
    state.put_chain("one", ["accept"])
    assert state.element_changes() is None
    state.put_chain("one", ["drop"])
    state.put_set("more", "ipv4_addr")
    assert state.element_changes() is None

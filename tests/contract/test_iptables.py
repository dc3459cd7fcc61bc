"""The in-memory iptables of the unit tests against the real one: same input, same tables, same refusals.

The planner compares rules as text, so the fake is only worth something if real iptables gives back every
rule as it was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from service_kit import STEPS, Services, comparable
from service_oracle import BUILT_IN, FakeIptables

from agent.services.iptables import IptablesBackEnd, Port
from agent.services.rules import Settings
from host import netns
from host.errors import HostError
from host.rules import iptables
from host.rules.iptables import Tables

T = TypeVar("T")
CHAINS = "*nat\n:OURS - [0:0]\n-A OURS -p tcp -m tcp --dport 80 -j RETURN\n-A OURS -j MASQUERADE\n"


class HostPort:
    """The machine's iptables inside one network namespace."""

    def __init__(self, where: Path) -> None:
        self._where = where

    async def _inside(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(netns.run_in, self._where, work)

    async def restore(self, text: str) -> None:
        await self._inside(lambda: iptables.restore(text))

    async def save(self) -> Tables:
        return await self._inside(lambda: iptables.parse_save(iptables.save()))

    async def read_chain(self, table: str, chain: str) -> list[str] | None:
        return await self._inside(lambda: iptables.read_chain(table, chain))

    async def batch_limit(self) -> int | None:
        return None


@pytest.fixture(params=["fake", "iptables"])
def port(request: pytest.FixtureRequest) -> Port:
    if request.param == "fake":
        return FakeIptables()
    return HostPort(request.getfixturevalue("new_netns")("rules"))


async def nat(port: Port) -> dict[str, list[str]]:
    return (await port.save()).get("nat", {chain: [] for chain in BUILT_IN["nat"]})


async def ours(port: Port) -> Tables:
    """The tables that Services have rules in."""
    return {table: chains for table, chains in (await port.save()).items() if table in BUILT_IN}


async def test_chains_are_made_filled_and_read(port: Port) -> None:
    assert await port.read_chain("nat", "OURS") is None
    await port.restore(CHAINS + "-A POSTROUTING -j OURS\n-I POSTROUTING -j RETURN\nCOMMIT\n")
    expected = ["-p tcp -m tcp --dport 80 -j RETURN", "-j MASQUERADE"]
    assert await port.read_chain("nat", "OURS") == expected
    assert (await nat(port))["OURS"] == expected
    assert (await nat(port))["POSTROUTING"] == ["-j RETURN", "-j OURS"]


async def test_naming_a_chain_empties_it(port: Port) -> None:
    await port.restore(CHAINS + "COMMIT\n")
    await port.restore("*nat\n:OURS - [0:0]\n-A OURS -j ACCEPT\nCOMMIT\n")
    assert await port.read_chain("nat", "OURS") == ["-j ACCEPT"]


async def test_of_equal_rules_one_is_deleted(port: Port) -> None:
    await port.restore(CHAINS + "-A OURS -j MASQUERADE\nCOMMIT\n")
    await port.restore("*nat\n-D OURS -j MASQUERADE\nCOMMIT\n")
    assert await port.read_chain("nat", "OURS") == ["-p tcp -m tcp --dport 80 -j RETURN", "-j MASQUERADE"]


async def test_a_chain_goes_with_the_last_rule_that_leads_to_it(port: Port) -> None:
    await port.restore(CHAINS + "-A POSTROUTING -j OURS\nCOMMIT\n")
    await port.restore("*nat\n:OURS - [0:0]\n-D POSTROUTING -j OURS\n-X OURS\nCOMMIT\n")
    assert "OURS" not in await nat(port)
    assert (await nat(port))["POSTROUTING"] == []


@pytest.mark.parametrize(
    "line",
    [
        "-A OURS -j NOBODYS",
        "-A NOBODYS -j ACCEPT",
        "-D OURS -j ACCEPT",
        "-X NOBODYS",
        "-X OURS",
    ],
)
async def test_a_refusal_changes_nothing(port: Port, line: str) -> None:
    await port.restore(CHAINS + "-A POSTROUTING -j OURS\nCOMMIT\n")
    before = await nat(port)
    with pytest.raises(HostError):
        await port.restore(f"*nat\n:MORE - [0:0]\n-A POSTROUTING -j MORE\n{line}\nCOMMIT\n")
    assert await nat(port) == before


async def test_every_sync_ends_in_the_same_tables(new_netns: Callable[[str], Path]) -> None:
    fake, real = FakeIptables(), HostPort(new_netns("rules"))
    ends = IptablesBackEnd(Settings(), port=fake), IptablesBackEnd(Settings(), port=real)
    known: Services = {}
    for index, wanted in enumerate(STEPS):
        for end in ends:
            await end.sync(wanted, [*known, *wanted])
            assert await end.drifted() == "", f"step {index}"
        assert comparable(await ours(real)) == comparable(fake.tables), f"step {index}"
        known = wanted
    for end in ends:
        await end.clean_up()
    assert {
        table: chains for table, chains in (await real.save()).items() if table in BUILT_IN
    } == fake.tables

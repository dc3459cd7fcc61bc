"""From rules present to rules wanted: whatever the two are, the fake iptables ends with what is wanted."""

from __future__ import annotations

import random

import pytest
from service_kit import STEPS, Services, by_key, comparable, service
from service_oracle import BUILT_IN, FakeIptables

from agent.services import diff, rules
from agent.services.iptables import IptablesBackEnd
from agent.services.rules import Settings
from host.errors import HostError


async def fresh(services: Services) -> FakeIptables:
    fake = FakeIptables()
    await IptablesBackEnd(Settings(), port=fake).sync(services, [])
    return fake


@pytest.mark.parametrize("limit", [None, 1, 3])
async def test_partial_syncs_end_where_a_fresh_one_does(limit: int | None) -> None:
    fake = FakeIptables(limit=limit)
    back_end = IptablesBackEnd(Settings(), port=fake)
    known: Services = {}
    for index, wanted in enumerate(STEPS):
        done = await back_end.sync(wanted, [*known, *wanted])
        assert done.full == (index == 0)
        assert comparable(fake.tables) == comparable((await fresh(wanted)).tables), f"step {index}"
        known = wanted
    assert fake.saves == 1


@pytest.mark.parametrize("start", range(len(STEPS)))
@pytest.mark.parametrize("end", [1, 4, 7])
async def test_a_full_sync_repairs_anything(start: int, end: int) -> None:
    fake = await fresh(STEPS[start])
    await IptablesBackEnd(Settings(), port=fake).sync(STEPS[end], [])
    assert comparable(fake.tables) == comparable((await fresh(STEPS[end])).tables)


async def test_a_full_sync_repairs_damage_and_leaves_strangers_alone() -> None:
    wanted = STEPS[4]
    dice = random.Random(7)
    for _ in range(40):
        fake = await fresh(wanted)
        fake.tables["filter"]["STRANGER"] = ["-j ACCEPT"]
        fake.tables["filter"]["INPUT"].append("-j STRANGER")
        fake.tables["nat"]["KUBE-SEP-STALE"] = ["-j ACCEPT"]
        fake.tables["nat"]["KUBE-SVC-STALE"] = ["-j KUBE-SEP-STALE"]
        fake.tables["nat"][rules.SERVICES].insert(0, "-d 10.96.9.9/32 -j KUBE-SVC-STALE")
        table = dice.choice(["nat", "filter"])
        chain = dice.choice(sorted(fake.tables[table]))
        damage = dice.choice(["flush", "double", "shuffle"])
        body = fake.tables[table][chain]
        if damage == "flush":
            fake.tables[table][chain] = []
        elif damage == "double":
            fake.tables[table][chain] = body * 2
        else:
            dice.shuffle(body)
        strangers = (list(fake.tables["filter"].get("STRANGER", [])),)
        await IptablesBackEnd(Settings(), port=fake).sync(wanted, [])
        expected = await fresh(wanted)
        expected.tables["filter"]["STRANGER"] = strangers[0]
        for built_in in ("INPUT", "FORWARD", "OUTPUT"):
            fake.tables["filter"][built_in] = [
                rule for rule in fake.tables["filter"][built_in] if "STRANGER" not in rule
            ]
        for name, chains in BUILT_IN.items():
            for built_in in chains:
                assert set(fake.tables[name][built_in]) == set(expected.tables[name][built_in])
                fake.tables[name][built_in] = expected.tables[name][built_in]
        assert comparable(fake.tables) == comparable(expected.tables), (table, chain, damage)


async def test_nothing_to_do_writes_nothing() -> None:
    fake = await fresh(STEPS[4])
    fake.texts.clear()
    back_end = IptablesBackEnd(Settings(), port=fake)
    assert (await back_end.sync(STEPS[4], [])).transactions == 0
    assert (await back_end.sync(STEPS[4], list(STEPS[4]))).transactions == 0
    assert fake.texts == []


async def test_one_change_writes_only_what_changed() -> None:
    services = by_key(*(service(number, 1, 2) for number in range(1, 51)))
    fake = FakeIptables()
    back_end = IptablesBackEnd(Settings(), port=fake)
    await back_end.sync(services, [])
    fake.texts.clear()
    services["ns/s7"] = service(7, 1, 3)
    await back_end.sync(services, ["ns/s7"])
    assert len(fake.texts) == 1
    text = fake.texts[0]
    assert rules.SERVICES not in text and "*filter" not in text
    assert "10.1.7.3:8080" in text and "10.96.0.8" not in text
    assert text.count("\n") < 15


async def test_after_a_failure_the_next_sync_is_full() -> None:
    fake = FakeIptables()
    back_end = IptablesBackEnd(Settings(), port=fake)
    await back_end.sync(STEPS[1], [])
    fake.failures = 1
    with pytest.raises(HostError):
        await back_end.sync(STEPS[4], list(STEPS[4]))
    assert (await back_end.sync(STEPS[4], [])).full
    assert comparable(fake.tables) == comparable((await fresh(STEPS[4])).tables)


async def test_drift_is_noticed() -> None:
    for table, chain in (("nat", rules.POSTROUTING), ("nat", "PREROUTING"), ("filter", "FORWARD")):
        fake = FakeIptables()
        back_end = IptablesBackEnd(Settings(), port=fake)
        await back_end.sync(STEPS[1], [])
        assert await back_end.drifted() == ""
        fake.tables[table][chain] = []
        assert chain in await back_end.drifted()
    del fake.tables["nat"][rules.CANARY]
    assert "KUBE-" in await back_end.drifted()


@pytest.mark.parametrize("limit", [None, 1])
async def test_clean_up_leaves_what_was_there_before(limit: int | None) -> None:
    fake = await fresh(STEPS[4])
    fake.limit = limit
    fake.tables["nat"]["POSTROUTING"].append("-j MASQUERADE")
    await IptablesBackEnd(Settings(), port=fake).clean_up()
    empty = FakeIptables().tables
    empty["nat"]["POSTROUTING"].append("-j MASQUERADE")
    assert fake.tables == empty


def test_packing_keeps_the_order_and_the_limit() -> None:
    steps = list(diff.full({}, {"ns/s1": rules.plan_service(service(1, 1, 2), Settings())}, Settings()))
    one = diff.pack(steps, limit=None)
    assert len(one) == 1
    several = diff.pack(steps, limit=4)
    assert len(several) > 3
    assert one[0].index("*filter") < one[0].index("*nat")

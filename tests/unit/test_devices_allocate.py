"""Which devices a pod's containers get."""

import pytest
from podkit import make_pod

from agent.devices import allocate
from agent.devices.allocate import Choice, Demand, pick, shortage
from agent.devices.grants import DeviceError, merged
from proto.devices import plugin_pb2 as pb

DEV, OTHER = "example.com/dev", "example.com/other"


def asking(name: str, **amounts: object) -> dict[str, object]:
    limits = {f"example.com/{key}": str(amount) for key, amount in amounts.items()}
    return {"name": name, "image": "busybox", "resources": {"limits": limits}}


def test_demands_follow_the_order_of_starts_and_only_plugins_resources_count():
    side = asking("side", dev=1) | {"restartPolicy": "Always"}
    spec = {
        "initContainers": [asking("first", dev=2), side],
        "containers": [asking("app", dev=1, other=3, unknown=1), asking("plain")],
    }
    assert allocate.demands(make_pod(spec=spec), {DEV, OTHER}) == [
        Demand("first", DEV, 2, lends=True),
        Demand("side", DEV, 1),
        Demand("app", DEV, 1),
        Demand("app", OTHER, 3),
    ]


def chosen(demands: list[Demand], healthy: list[str], taken: set[str] = frozenset()) -> list[tuple[str, ...]]:
    choice = Choice(healthy={DEV: healthy}, taken={DEV: taken})
    found = []
    for demand in demands:
        offer = choice.offer(demand)
        assert not offer.missing, shortage(offer)
        found.append(pick(offer))
        choice.take(demand, found[-1])
    return found


def test_containers_of_a_pod_share_nothing():
    demands = [Demand("a", DEV, 1), Demand("b", DEV, 2)]
    assert chosen(demands, ["0", "1", "2", "3"], taken={"0"}) == [("1",), ("2", "3")]


def test_what_an_init_container_had_goes_to_those_after_it_once():
    demands = [
        Demand("init-1", DEV, 1, lends=True),
        Demand("init-2", DEV, 2, lends=True),
        Demand("side", DEV, 1),
        Demand("app", DEV, 1),
    ]
    assert chosen(demands, ["0", "1"]) == [("0",), ("0", "1"), ("0",), ("1",)]


def test_a_shortage_names_resource_and_figures():
    offer = Choice(healthy={DEV: ["0"]}, taken={DEV: {"0"}}).offer(Demand("a", DEV, 2))
    assert offer.missing == 2
    assert shortage(offer) == (
        "requested number of devices unavailable for example.com/dev. Requested: 2, Available: 0"
    )


def test_a_preference_counts_only_for_what_is_free():
    offer = Choice(healthy={DEV: ["0", "1", "2"]}, taken={DEV: {"2"}}).offer(Demand("a", DEV, 2))
    assert pick(offer, ("2", "1", "nonsense")) == ("1", "0")


def test_answers_for_two_resources_come_together():
    first = pb.ContainerAllocateResponse(
        envs={"A": "1"}, mounts=[pb.Mount(container_path="/m", host_path="/h", read_only=True)]
    )
    second = pb.ContainerAllocateResponse(
        envs={"A": "1", "B": "2"}, cdi_devices=[pb.CDIDevice(name="v/c=1"), pb.CDIDevice(name="v/c=1")]
    )
    grants = merged([first, second])
    assert grants.envs == {"A": "1", "B": "2"}
    assert grants.cdi_devices == ("v/c=1",)
    assert [(m.container_path, m.host_path, m.readonly) for m in grants.mounts] == [("/m", "/h", True)]
    second.envs["A"] = "3"
    with pytest.raises(DeviceError, match="disagree about the environment variable 'A'"):
        merged([first, second])

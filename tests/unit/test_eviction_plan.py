"""Eviction decisions: thresholds, pressures and their timing, ranks, messages, storage limits, admission."""

from __future__ import annotations

from typing import Any

import pytest
from podkit import make_pod

from agent.api.structs import Pod
from agent.resources.eviction import message, storage
from agent.resources.eviction.admission import critical, refusal
from agent.resources.eviction.manager import reclaims
from agent.resources.eviction.plan import CALM_PAUSE, TENSE_PAUSE, Memory, look, pause, settled
from agent.resources.eviction.rank import ContainerUsage, Disk, PodUsage, rank
from agent.resources.eviction.signals import (
    Amount,
    Disks,
    Observation,
    Threshold,
    thresholds,
    with_container_fs,
)

MIB = 1 << 20
ONE_DISK, OWN_IMAGE_DISK, SPLIT = Disks(), Disks(images=True), Disks(images=True, split=True)


def hard(signal: str, value: str, reclaim: str | None = None) -> Threshold:
    return Threshold(signal=signal, value=Amount(value), reclaim=Amount(reclaim) if reclaim else None)


MEMORY = hard("memory.available", "100Mi")
DISK = hard("nodefs.available", "10%", "5%")
SOFT = Threshold(signal="memory.available", value=Amount("200Mi"), grace=30.0)


def seen(**figures: int) -> dict[str, Observation]:
    """Observations out of 1000 (memory: MiB): `memory=50`, `nodefs=90`."""
    names = {"memory": "memory.available", "nodefs": "nodefs.available", "pid": "pid.available"}
    unit = {"memory": MIB}
    return {
        names[key]: Observation(value * unit.get(key, 1), 1000 * unit.get(key, 1))
        for key, value in figures.items()
    }


# --- configuration ----------------------------------------------------------------------------------------


def configured(**more: Any) -> tuple[Threshold, ...]:
    given: dict[str, Any] = {"hard": {}, "soft": {}, "grace": {}, "reclaim": {}, "allocatable": False}
    return thresholds(**{**given, **more})


def test_thresholds_of_a_configuration() -> None:
    found = configured(
        hard={"memory.available": "100Mi", "nodefs.available": "0%"},
        soft={"memory.available": "1Gi"},
        grace={"memory.available": 90.0},
        reclaim={"memory.available": "50Mi"},
        allocatable=True,
    )
    assert [(t.signal, t.value.text, t.grace) for t in found] == [
        ("memory.available", "100Mi", 0.0),
        ("memory.available", "1Gi", 90.0),
        ("allocatableMemory.available", "100Mi", 0.0),
    ]
    assert {t.reclaim for t in found} == {Amount("50Mi")}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hard": {"disk.available": "1%"}}, "there is no signal 'disk.available'"),
        ({"hard": {"memory.available": "much"}}, "evictionHard.memory.available: not a quantity"),
        ({"hard": {"memory.available": "101%"}}, "out of range"),
        ({"soft": {"memory.available": "1Gi"}}, "evictionSoftGracePeriod.memory.available must be set"),
        ({"reclaim": {"x": "1"}}, "evictionMinimumReclaim"),
    ],
)
def test_bad_thresholds_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configured(**fields)


def test_containerfs_follows_the_disk_of_the_writable_layers() -> None:
    node, image = hard("nodefs.available", "10%"), hard("imagefs.available", "15%")
    own = hard("containerfs.available", "99%")

    def of(disks: Disks) -> list[str]:
        found = with_container_fs((node, image, own), disks)
        return [t.value.text for t in found if t.signal == "containerfs.available"]

    assert (of(ONE_DISK), of(OWN_IMAGE_DISK), of(SPLIT)) == (["10%"], ["15%"], ["10%"])


# --- timing -----------------------------------------------------------------------------------------------


def test_below_is_met_and_equal_is_not() -> None:
    assert MEMORY.met(seen(memory=99)) and not MEMORY.met(seen(memory=100))
    assert not MEMORY.met({})


def test_a_pressure_stays_for_the_transition_period() -> None:
    first = look(Memory(), [MEMORY], seen(memory=50), now=0.0, transition=300.0)
    assert first.due == (MEMORY,)
    assert first.pressures == {"MemoryPressure": "memory.available 52428800 is below 104857600 (100Mi)"}
    second = look(first.memory, [MEMORY], seen(memory=900), now=299.0, transition=300.0)
    assert (second.due, second.pressures.keys()) == ((), {"MemoryPressure"})
    third = look(second.memory, [MEMORY], seen(memory=900), now=300.0, transition=300.0)
    assert third.pressures == {}


def test_the_figures_of_a_pressure_do_not_change_while_it_lasts() -> None:
    first = look(Memory(), [MEMORY], seen(memory=50), now=0.0, transition=300.0)
    second = look(first.memory, [MEMORY], seen(memory=40), now=10.0, transition=300.0)
    assert second.pressures == first.pressures


def test_a_soft_threshold_reports_at_once_and_acts_after_its_grace() -> None:
    first = look(Memory(), [SOFT], seen(memory=150), now=0.0, transition=300.0)
    assert (first.pressures.keys(), first.due) == ({"MemoryPressure"}, ())
    assert look(first.memory, [SOFT], seen(memory=150), now=29.9, transition=300.0).due == ()
    assert look(first.memory, [SOFT], seen(memory=150), now=30.0, transition=300.0).due == (SOFT,)
    interrupted = look(first.memory, [SOFT], seen(memory=500), now=20.0, transition=300.0)
    assert look(interrupted.memory, [SOFT], seen(memory=150), now=30.0, transition=300.0).due == ()


def test_minimum_reclaim_counts_only_for_what_was_acted_on() -> None:
    above = look(Memory(), [DISK], seen(nodefs=120), now=0.0, transition=300.0)
    assert above.due == ()
    below = look(above.memory, [DISK], seen(nodefs=90), now=10.0, transition=300.0)
    between = look(below.memory, [DISK], seen(nodefs=120), now=20.0, transition=300.0)
    free = look(between.memory, [DISK], seen(nodefs=150), now=30.0, transition=300.0)
    assert (below.due, between.due, free.due) == ((DISK,), (DISK,), ())


def test_memory_comes_first() -> None:
    found = look(Memory(), [DISK, MEMORY], seen(nodefs=1, memory=1), now=0.0, transition=1.0)
    assert found.due == (MEMORY, DISK)


def test_reclaiming_was_enough_when_the_minimum_is_free_too() -> None:
    assert settled([DISK], seen(nodefs=150)) and not settled([DISK], seen(nodefs=149))


def test_the_next_look_is_sooner_near_a_threshold() -> None:
    assert pause([MEMORY], seen(memory=199)) == TENSE_PAUSE
    assert pause([MEMORY], seen(memory=200)) == pause([MEMORY], {}) == CALM_PAUSE


# --- ranks ------------------------------------------------------------------------------------------------


def sized(name: str, *, priority: int = 0, limits: dict[str, str] | None = None, **requests: str) -> Pod:
    resources = {"requests": {k.replace("_", "-"): v for k, v in requests.items()}, "limits": limits or {}}
    containers = [{"name": "c", "image": "x", "resources": resources}]
    return make_pod(
        metadata={"name": name, "uid": name}, spec={"containers": containers, "priority": priority}
    )


def uses(memory: int = 0, *, processes: int = 0, rootfs: int = 0, logs: int = 0, volume: int = 0) -> PodUsage:
    """In MiB, and as many inodes."""

    def disk(size: int) -> Disk:
        return Disk(size * MIB, size)

    container = ContainerUsage(memory=memory * MIB, rootfs=disk(rootfs), logs=disk(logs))
    return PodUsage(
        memory=memory * MIB,
        processes=processes,
        containers={"c": container},
        volumes={"v": disk(volume)},
    )


Pods = list[tuple[Pod, PodUsage | None]]


def order(signal: str, pods: Pods, disks: Disks = ONE_DISK) -> list[str]:
    usage = {pod.metadata.uid: found for pod, found in pods if found is not None}
    return [pod.metadata.name for pod in rank([pod for pod, _ in pods], usage, signal, disks)]


def test_memory_rank_is_over_request_then_priority_then_use_above_it() -> None:
    pods: Pods = [
        (sized("within", memory="500Mi"), uses(400)),
        (sized("over-high", memory="100Mi", priority=10), uses(900)),
        (sized("over-little", memory="100Mi"), uses(110)),
        (sized("over-much", memory="100Mi"), uses(300)),
        (sized("best-effort"), uses(250)),
        (sized("within-low", memory="500Mi", priority=-1), uses(1)),
        (sized("unknown", priority=99), None),
    ]
    assert order("memory.available", pods) == [
        "unknown",
        "best-effort",
        "over-much",
        "over-little",
        "over-high",
        "within-low",
        "within",
    ]


def test_process_rank_is_priority_then_number() -> None:
    pods: Pods = [
        (sized("high", priority=5), uses(processes=900)),
        (sized("few"), uses(processes=2)),
        (sized("many"), uses(processes=50)),
    ]
    assert order("pid.available", pods) == ["many", "few", "high"]


@pytest.mark.parametrize(
    ("signal", "disks", "first"),
    [
        ("nodefs.available", ONE_DISK, "layers"),
        ("imagefs.available", ONE_DISK, "layers"),
        ("nodefs.available", OWN_IMAGE_DISK, "volumes"),
        ("nodefs.inodesFree", OWN_IMAGE_DISK, "volumes"),
        ("imagefs.available", OWN_IMAGE_DISK, "layers"),
        ("containerfs.inodesFree", OWN_IMAGE_DISK, "layers"),
        ("nodefs.available", SPLIT, "layers"),
        ("containerfs.available", SPLIT, "layers"),
    ],
)
def test_disk_rank_counts_what_is_on_that_disk(signal: str, disks: Disks, first: str) -> None:
    pods: Pods = [
        (sized("volumes"), uses(volume=70, logs=5)),
        (sized("layers"), uses(rootfs=90)),
    ]
    assert order(signal, pods, disks)[0] == first


def test_a_pod_that_asked_for_its_storage_goes_later() -> None:
    pods: Pods = [
        (sized("asked", ephemeral_storage="1Gi"), uses(rootfs=800)),
        (sized("not"), uses(rootfs=10)),
    ]
    assert order("nodefs.available", pods) == ["not", "asked"]


# --- words ------------------------------------------------------------------------------------------------


def test_the_message_shows_the_arithmetic() -> None:
    pod = sized("p", memory="64Mi")
    text = message.low(pod, uses(80), (MEMORY,), seen(memory=50))
    assert text == (
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
        "Container c was using 80Mi, request is 64Mi, has larger consumption of memory. "
    )
    assert message.low(pod, None, (DISK,), seen(nodefs=90)) == (
        "The node was low on resource: ephemeral-storage. Threshold quantity: 100, available: 90. "
    )


@pytest.mark.parametrize(
    ("signal", "disks", "steps"),
    [
        ("memory.available", ONE_DISK, ()),
        ("pid.available", ONE_DISK, ()),
        ("nodefs.available", ONE_DISK, ("containers", "images")),
        ("nodefs.available", OWN_IMAGE_DISK, ()),
        ("imagefs.inodesFree", OWN_IMAGE_DISK, ("containers", "images")),
        ("imagefs.available", SPLIT, ("images",)),
        ("nodefs.available", SPLIT, ("containers",)),
    ],
)
def test_what_is_reclaimed_before_a_pod_goes(signal: str, disks: Disks, steps: tuple[str, ...]) -> None:
    assert reclaims(signal, disks) == steps


# --- local storage limits ---------------------------------------------------------------------------------


def limited(container: str | None = None, second: str | None = None, volume: str | None = None) -> Pod:
    def resources(limit: str | None) -> dict[str, Any]:
        return {"limits": {"ephemeral-storage": limit}} if limit else {}

    containers = [{"name": "c", "image": "x", "resources": resources(container)}]
    if second:
        containers.append({"name": "d", "image": "x", "resources": resources(second)})
    volumes = [{"name": "v", "emptyDir": {"sizeLimit": volume} if volume else {}}]
    return make_pod(spec={"containers": containers, "volumes": volumes})


def test_only_pods_with_limits_are_measured() -> None:
    assert not storage.limited(limited())
    assert storage.limited(limited("1Mi")) and storage.limited(limited(volume="1Mi"))


@pytest.mark.parametrize(
    ("pod", "usage", "words"),
    [
        (limited(volume="10Mi"), uses(volume=10), None),
        (limited(volume="10Mi"), uses(volume=11), 'Usage of EmptyDir volume "v" exceeds the limit "10Mi". '),
        (limited("10Mi"), uses(rootfs=5, logs=5), None),
        (
            limited("10Mi"),
            uses(rootfs=5, logs=4, volume=2),
            "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ",
        ),
        (
            limited("10Mi", "90Mi"),
            uses(rootfs=5, logs=6),
            'Container c exceeded its local ephemeral storage limit "10Mi". ',
        ),
    ],
)
def test_which_limit_a_pod_exceeds(pod: Pod, usage: PodUsage, words: str | None) -> None:
    assert storage.overrun(pod, usage, ONE_DISK) == words


def test_layers_on_their_own_disk_do_not_count_for_the_container() -> None:
    assert storage.overrun(limited("10Mi", "90Mi"), uses(rootfs=50), OWN_IMAGE_DISK) is None


def test_memory_volumes_do_not_count_for_the_pod() -> None:
    usage = PodUsage(volumes={"v": Disk(50 * MIB, 1)}, memory_volumes=frozenset({"v"}))
    assert storage.overrun(limited("10Mi"), usage, ONE_DISK) is None


# --- admission --------------------------------------------------------------------------------------------

TOLERATING = make_pod(
    spec={"tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}
)
STATIC = make_pod(metadata={"annotations": {"kubernetes.io/config.source": "file"}})


@pytest.mark.parametrize(
    ("pod", "pressures", "taken"),
    [
        (sized("best-effort"), {"MemoryPressure"}, False),
        (sized("burstable", cpu="1m"), {"MemoryPressure"}, True),
        (TOLERATING, {"MemoryPressure"}, True),
        (TOLERATING, {"MemoryPressure", "DiskPressure"}, False),
        (sized("burstable", cpu="1m"), {"DiskPressure"}, False),
        (sized("burstable", cpu="1m"), {"PIDPressure"}, False),
        (sized("critical", priority=2_000_000_000), {"DiskPressure"}, True),
        (STATIC, {"DiskPressure"}, True),
        (sized("best-effort"), set(), True),
    ],
)
def test_admission_under_pressure(pod: Pod, pressures: set[str], taken: bool) -> None:
    assert (refusal(pod, pressures) is None) == taken


def test_the_refusal_names_the_conditions() -> None:
    found = refusal(sized("p"), {"MemoryPressure", "DiskPressure"})
    assert found == ("Evicted", "The node had condition: [DiskPressure MemoryPressure]. ")


def test_critical_pods() -> None:
    assert critical(STATIC) and critical(sized("p", priority=2_000_001_000)) and not critical(sized("q"))

"""Which devices a pod's containers get. Pure.

Init containers run one after the other and before the rest, so what one of them had goes to those after it;
sidecars and the pod's own containers keep theirs to themselves.

Source: pkg/kubelet/cm/devicemanager/manager.go (devicesToAllocate, Allocate), v1.37.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from agent.api.structs import Container, Pod
from agent.resources import qos


@dataclass(frozen=True)
class Demand:
    """Some devices of one resource for one container; `lends`: they are free again once it has ended."""

    container: str
    resource: str
    count: int
    lends: bool = False


@dataclass(frozen=True)
class Offer:
    """What a demand can be met from.

    Attributes:
        must: devices of an init container before, which are to be used up first.
        free: ids of healthy devices that nobody has, in the plugin's order.
    """

    demand: Demand
    must: tuple[str, ...]
    free: tuple[str, ...]

    @property
    def missing(self) -> int:
        """How many devices there are too few."""
        return max(0, self.demand.count - len(self.must) - len(self.free))


def demands(pod: Pod, resources: Collection[str]) -> list[Demand]:
    """What the pod asks for of these resources, in the order its containers start."""
    found = []
    for container, lends in (
        *((each, each.restart_policy != "Always") for each in pod.spec.init_containers),
        *((each, False) for each in pod.spec.containers),
    ):
        found += [Demand(container.name, name, count, lends) for name, count in _asked(container, resources)]
    return found


def _asked(container: Container, resources: Collection[str]) -> list[tuple[str, int]]:
    amounts = qos.requests_of(container.resources)
    return [(name, int(amount)) for name, amount in amounts.items() if name in resources and amount > 0]


@dataclass
class Choice:
    """Devices chosen for one pod, demand by demand.

    Attributes:
        healthy: ids of the healthy devices of each resource, in the plugin's order.
        taken: ids that other pods have.
    """

    healthy: Mapping[str, Sequence[str]]
    taken: Mapping[str, Collection[str]]
    _mine: dict[str, set[str]] = field(default_factory=dict)
    _lent: dict[str, list[str]] = field(default_factory=dict)

    def offer(self, demand: Demand) -> Offer:
        """What there is for the next demand."""
        name = demand.resource
        gone = self._mine.get(name, set()).union(self.taken.get(name, ()))
        return Offer(
            demand=demand,
            must=tuple(self._lent.get(name, ())[: demand.count]),
            free=tuple(each for each in self.healthy.get(name, ()) if each not in gone),
        )

    def take(self, demand: Demand, ids: Sequence[str]) -> None:
        """Give the demand these devices."""
        name = demand.resource
        self._mine.setdefault(name, set()).update(ids)
        lent = self._lent.setdefault(name, [])
        if demand.lends:
            lent += [each for each in ids if each not in lent]
        else:
            lent[:] = [each for each in lent if each not in ids]


def pick(offer: Offer, preferred: Sequence[str] = ()) -> tuple[str, ...]:
    """The devices for an offer in which nothing is missing: those that must be, the preferred, the next."""
    wanted = [each for each in preferred if each in offer.free]
    return tuple(dict.fromkeys((*offer.must, *wanted, *offer.free)))[: offer.demand.count]


def shortage(offer: Offer) -> str:
    """The words for an offer in which something is missing (kubelet's)."""
    demand = offer.demand
    return (
        f"requested number of devices unavailable for {demand.resource}. "
        f"Requested: {demand.count}, Available: {len(offer.must) + len(offer.free)}"
    )

"""Label selectors as hashable values, so that equal selectors of many policies share one set of addresses.

Source: k8s.io/apimachinery/pkg/apis/meta/v1/types.go (LabelSelector), pkg/labels/selector.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.api.meta import LabelSelector

Requirement = tuple[str, str, tuple[str, ...]]
"""(key, operator, sorted values)"""


@dataclass(frozen=True)
class Selector:
    """All requirements must hold; one without any matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected. An operator we do not know matches nothing."""
        return all(_holds(requirement, labels) for requirement in self.requirements)

    def anchors(self) -> Iterator[tuple[str, str] | None]:
        """Labels of which a selected object has at least one; only None where there are no such.

        An index by anchors finds the few selectors that can match an object among thousands.
        """
        for key, operator, values in self.requirements:
            if operator == "In" and values:
                yield from ((key, value) for value in values)
                return
        yield None


EVERYTHING = Selector()


def selector(one: LabelSelector) -> Selector:
    """The value of an API selector; `matchLabels` are written as `In` with one value. Pure."""
    requirements: list[Requirement] = [(key, "In", (value,)) for key, value in one.match_labels.items()]
    requirements += [(r.key, r.operator, tuple(sorted(set(r.values)))) for r in one.match_expressions]
    return Selector(tuple(sorted(set(requirements))))


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    key, operator, values = requirement
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return key not in labels or labels[key] not in values
    if operator == "Exists":
        return key in labels
    return operator == "DoesNotExist" and key not in labels

"""Prometheus text exposition, as much of it as a node needs: families of labelled samples to text.

prometheus-client would do it too, at the price of 0.1 s of start time and several megabytes; the numbers here
are read afresh at each scrape, so nothing of its registry would be used.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One value; `timestamp` in Unix milliseconds, None: now. `suffix` follows the family's name."""

    value: float
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timestamp: int | None = None
    suffix: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """One metric. `kind` is "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...] = ()


class Histogram:
    """Values counted by upper bound. For one thread.

    Args:
        bounds: the buckets' upper bounds, rising.
        labels: of all its samples.
    """

    def __init__(self, bounds: Sequence[float], labels: Mapping[str, str] | None = None) -> None:
        self._bounds = tuple(bounds)
        self._labels = dict(labels or {})
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> tuple[Sample, ...]:
        """Buckets (each counts what is below its bound), sum and count."""
        found, total = [], 0
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append(Sample(total, {**self._labels, "le": bound}, suffix="_bucket"))
        return (
            *found,
            Sample(self._sum, self._labels, suffix="_sum"),
            Sample(total, self._labels, suffix="_count"),
        )


def gauge(name: str, help: str, value: float, **labels: str) -> Family:
    """A family of one sample that goes up and down."""
    return Family(name, "gauge", help, (Sample(value, labels),))


def counter(name: str, help: str, value: float, **labels: str) -> Family:
    """A family of one sample that only grows."""
    return Family(name, "counter", help, (Sample(value, labels),))


def doubling(first: float, count: int) -> tuple[float, ...]:
    """Bounds of a histogram, each twice the one before."""
    return tuple(first * 2**step for step in range(count))


def render(families: Iterable[Family]) -> str:
    """The text of all families; one without samples shows its HELP and TYPE only."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_line(family.name + sample.suffix, sample) for sample in family.samples]
    return "\n".join(lines) + "\n"


def values(families: Iterable[Family]) -> dict[str, float]:
    """Each sample's value by its name with labels, as the text has them."""
    lines = (line for line in render(families).splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{key}="{_escape(text)}"' for key, text in sorted(sample.labels.items()))
    text = f"{name}{{{labels}}}" if labels else name
    return f"{text} {_number(sample.value)}" + (
        f" {sample.timestamp}" if sample.timestamp is not None else ""
    )


def _number(value: float) -> str:
    return repr(float(value)) if value != int(value) else str(int(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

"""Prometheus text exposition, as much of it as a node needs: families of labelled samples to text.

prometheus-client would do it too, at the price of 0.1 s of start time and several megabytes; the numbers here
are read afresh at each scrape, so nothing of its registry would be used.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One value; `timestamp` in Unix milliseconds, None: now."""

    value: float
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timestamp: int | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """One metric. `kind` is "counter" or "gauge"."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...] = ()


def render(families: Iterable[Family]) -> str:
    """The text of all families; one without samples shows its HELP and TYPE only."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_line(family.name, sample) for sample in family.samples]
    return "\n".join(lines) + "\n"


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{key}="{_escape(text)}"' for key, text in sorted(sample.labels.items()))
    text = f"{name}{{{labels}}}" if labels else name
    value = repr(float(sample.value)) if sample.value != int(sample.value) else str(int(sample.value))
    return f"{text} {value}" + (f" {sample.timestamp}" if sample.timestamp is not None else "")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

"""Durations and sizes as Go programs write them in configuration files: "10s", "1h30m", "100ms"; "10Mi".

Source: https://pkg.go.dev/time#ParseDuration; sizes are Kubernetes quantities.
"""

from __future__ import annotations

import re

from agent.api import quantity

_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(float):
    """Seconds, read from a Go duration string (or 0)."""


class Size(int):
    """Bytes, read from a quantity."""


def parse_duration(text: str) -> Duration:
    """Seconds of a Go duration. Raises ValueError with an example when it is not one."""
    rest = text.strip()
    if rest == "0":
        return Duration(0)
    sign = -1.0 if rest.startswith("-") else 1.0
    rest = rest.lstrip("+-")
    total, position = 0.0, 0
    for match in _PART.finditer(rest):
        if match.start() != position:
            break
        total += float(match[1]) * _SECONDS[match[2]]
        position = match.end()
    if not rest or position != len(rest):
        raise ValueError(f"not a duration: {text!r} (examples: 10s, 1m30s, 500ms)")
    return Duration(sign * total)


def decode(kind: type, value: object) -> object:
    """msgspec's `dec_hook` for the two types above."""
    if kind is Duration:
        if isinstance(value, str):
            return parse_duration(value)
        if value == 0:
            return Duration(0)
        raise ValueError(f"not a duration: {value!r} (write a unit, for instance 10s)")
    if kind is Size:
        return Size(quantity.value(str(value)))
    raise NotImplementedError(kind)


def encode(value: object) -> object:
    """msgspec's `enc_hook` for the two types above: seconds as "1.5s", bytes as a number."""
    if isinstance(value, Duration):
        return f"{value:g}s"
    if isinstance(value, Size):
        return str(int(value))
    raise NotImplementedError(type(value))

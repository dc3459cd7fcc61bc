"""RFC 3339 times as the API writes them: `metav1.Time` (seconds) and `metav1.MicroTime` (microseconds).

Nothing here reads a clock. Source: k8s.io/apimachinery/pkg/apis/meta/v1/{time,micro_time}.go.
"""

from __future__ import annotations

import datetime
import re

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def format_time(seconds: float) -> str:
    """Unix seconds as `metav1.Time`: `2026-11-21T06:30:00Z`, fractions cut off."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(seconds: float) -> str:
    """Unix seconds as `metav1.MicroTime`: `2026-11-21T06:30:00.000001Z`."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_nano_time(text: str) -> int:
    """Unix nanoseconds of an RFC 3339 time with any number of fraction digits and any offset.

    Raises ValueError naming the text when it is not such a time.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    whole, fraction, zone = match.groups()
    zone = "+00:00" if zone in "Zz" else zone
    moment = datetime.datetime.fromisoformat(whole.upper() + zone)
    nanoseconds = int((fraction or "0")[:9].ljust(9, "0"))
    return int(moment.timestamp()) * 1_000_000_000 + nanoseconds


def parse_time(text: str | None) -> float | None:
    """Unix seconds of an API time, None for None or "". Raises ValueError for anything that is not a time."""
    return parse_nano_time(text) / 1e9 if text else None

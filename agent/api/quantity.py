"""Kubernetes quantities: "100m", "1.5Gi", "2e3", in exact arithmetic.

For reading requests, limits and thresholds, and for writing capacity. Not a full `resource.Quantity`: values
are Fractions, and text that came from the API is passed on unchanged rather than put in canonical form.

Source: k8s.io/apimachinery/pkg/api/resource/quantity.go (the grammar in the doc comment of Quantity).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([a-zA-Z]{0,2}|[eE][+-]?\d+)", re.ASCII)
_SUFFIX = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}


def parse(text: str) -> Fraction:
    """The exact value of a quantity. Raises ValueError that quotes the text when it is not one."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or len(text) > 64:
        raise ValueError(f"not a quantity: {text[:64]!r} (examples: 500m, 1.5, 128Mi)")
    number, suffix = match.groups()
    if suffix in _SUFFIX:
        return Fraction(number) * _SUFFIX[suffix]
    if suffix[1:].lstrip("+-").isdigit() and abs(int(suffix[1:])) <= 30:
        return Fraction(number) * Fraction(10) ** int(suffix[1:])
    raise ValueError(f"not a quantity: {text!r} has the unknown suffix {suffix!r}")


def milli(text: str) -> int:
    """Thousandths, rounded up as the API does: "100m" is 100, "2" is 2000. For CPU."""
    return math.ceil(parse(text) * 1000)


def value(text: str) -> int:
    """Whole units, rounded up: "1Ki" is 1024, "100m" is 1. For bytes and counts."""
    return math.ceil(parse(text))


def format_kibibytes(size: int) -> str:
    """Bytes as kubelet writes node memory: "4036364Ki" (rounded down)."""
    return f"{size // 1024}Ki"


def format_milli(millis: int) -> str:
    """CPU thousandths in canonical form: 2000 is "2", 1500 is "1500m"."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def format_binary(size: int) -> str:
    """A whole number in canonical binary form: 52428800 is "50Mi", 1000 is "1000"."""
    return _canonical(size, 1024, ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))


def format_decimal(count: int) -> str:
    """A whole number in canonical decimal form: 5000 is "5k"."""
    return _canonical(count, 1000, ("", "k", "M", "G", "T", "P", "E"))


def _canonical(number: int, step: int, suffixes: tuple[str, ...]) -> str:
    index = 0
    while number and number % step == 0 and index < len(suffixes) - 1:
        number, index = number // step, index + 1
    return f"{number}{suffixes[index]}"

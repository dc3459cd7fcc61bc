"""Figures of a benchmark and how they are shown: a line each, with how many times better ours is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured pair.

    Attributes:
        what: in words.
        ours: nodelet's value.
        stock: the stock node's value, or None where it was not measured.
        unit: ms, s, MB, %.
        more_is_better: a rate, not a duration or a cost.
    """

    what: str
    ours: float
    stock: float | None
    unit: str
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None without a stock value."""
        if not self.ours or not self.stock:
            return None
        return self.ours / self.stock if self.more_is_better else self.stock / self.ours


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; `share` from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def line(figure: Figure) -> str:
    """`what  ours  stock  ratio N.Nx`."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g} {figure.unit}"

    ratio = f"{figure.ratio:.1f}x" if figure.ratio else "-"
    return f"{figure.what:58}  {shown(figure.ours):>12}  {shown(figure.stock):>12}  ratio {ratio}"

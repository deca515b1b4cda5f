"""Statistics by the names that CloudWatch has for them, computed on a Point.

    Average, Sum, ...      from what every point has
    p99.9                  a percentile
    tm, wm, tc, ts         of the values up to a percentile (tm99), or between two bounds, each in percent of the number
                           of values or as a value: TM(10%:90%), TC(0.5:), TS(:80%), WM(5%:95%)
    PR(100:2000)           percent of the values that lie between two values
    IQM                    TM(25%:75%)

All but the first line need the distribution, which is known to 1 %; where a point has none, there is no value.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from lambent.telemetry.metric_point import Point

Statistic = Callable[[Point], float | None]

BASIC: Final[dict[str, Statistic]] = {
    "SampleCount": lambda point: point.count,
    "Average": lambda point: point.average,
    "Sum": lambda point: point.sum,
    "Minimum": lambda point: point.minimum,
    "Maximum": lambda point: point.maximum,
}
_SHORT = re.compile(r"(p|tm|wm|tc|ts)(\d{1,3}(?:\.\d{1,10})?)", re.IGNORECASE)
_NUMBER = r"(-?\d+(?:\.\d+)?)?(%)?"
_LONG = re.compile(rf"(TM|WM|TC|TS|PR)\({_NUMBER}:{_NUMBER}\)", re.IGNORECASE)


class UnknownStatistic(ValueError):
    """No statistic has this name."""


class _Bound(NamedTuple):
    """One side of a range: a percentile, or a value."""

    number: float
    is_percent: bool


@functools.lru_cache(256)
def parse(name: str) -> Statistic:
    """The statistic of that name. Raises UnknownStatistic."""
    basic = BASIC.get(name)
    if basic is not None:
        return basic
    if name.upper() == "IQM":
        return functools.partial(_ranged, "TM", _Bound(25, True), _Bound(75, True))
    short = _SHORT.fullmatch(name)
    if short:
        kind, percent = short[1].lower(), float(short[2])
        if percent <= 100:
            if kind == "p":
                return lambda point: point.percentile(percent)
            return functools.partial(_ranged, kind.upper(), None, _Bound(percent, True))
    long = _LONG.fullmatch(name)
    if long:
        kind = long[1].upper()
        low, high = _bound(long[2], long[3]), _bound(long[4], long[5])
        given = [bound for bound in (low, high) if bound is not None]
        percents = [bound.is_percent for bound in given]
        if given and len(set(percents)) == 1 and not (kind == "PR" and any(percents)) and _in_order(low, high):
            return functools.partial(_ranged, kind, low, high)
    raise UnknownStatistic(name)


def _bound(number: str | None, percent: str | None) -> _Bound | None:
    if number is None:
        if percent is not None:
            raise UnknownStatistic("%")
        return None
    bound = _Bound(float(number), percent is not None)
    if bound.is_percent and not 0 <= bound.number <= 100:
        raise UnknownStatistic(f"{number}%")
    return bound


def _in_order(low: _Bound | None, high: _Bound | None) -> bool:
    return low is None or high is None or low.number < high.number


def _ranged(kind: str, low: _Bound | None, high: _Bound | None, point: Point) -> float | None:
    values = point.distribution()
    if values is None:
        return None
    inside, below, above = _cut(values, point.count, low, high)
    count = sum(amount for _, amount in inside)
    total = sum(value * amount for value, amount in inside)
    if kind == "TC":
        return count
    if kind == "TS":
        return total
    if kind == "PR":
        return 100 * count / point.count
    if not inside or not count:
        return None
    if kind == "WM":  # what lies outside counts as if it lay on the boundary
        return (total + below * inside[0][0] + above * inside[-1][0]) / (count + below + above)
    return total / count


def _cut(
    values: list[tuple[float, float]], count: float, low: _Bound | None, high: _Bound | None
) -> tuple[list[tuple[float, float]], float, float]:
    """The values within the bounds, and how many are below and above. A value on the lower bound is outside."""
    inside: list[tuple[float, float]] = []
    below = above = seen = 0.0
    for value, amount in values:
        under = over = 0.0
        if low is not None:
            under = _share(seen, amount, low.number / 100 * count) if low.is_percent else amount * (value <= low.number)
        if high is not None:
            if high.is_percent:
                over = amount - _share(seen, amount, high.number / 100 * count)
            else:
                over = amount * (value > high.number)
        seen += amount
        below += under
        above += over
        if amount - under - over > 1e-9:
            inside.append((value, amount - under - over))
    return inside, below, above


def _share(seen: float, amount: float, rank: float) -> float:
    """How much of the `amount` values that follow the first `seen` lies below a rank."""
    return min(max(rank - seen, 0.0), amount)

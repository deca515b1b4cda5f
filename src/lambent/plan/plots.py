"""What is plotted, in both kinds of report; and the PNG, which matplotlib draws when it is there.

For: page.py (SVG, needs nothing) and `--png`. It must not simulate. Outcomes: `charts()`, a list of charts with their
lines; a file; or WorkloadError with one line on what to install.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from lambent.plan.planner import Request
from lambent.plan.summary import Summary
from lambent.plan.workload import WorkloadError


@dataclasses.dataclass(frozen=True)
class Series:
    """One value for each stretch of time."""

    name: str
    colour: str
    values: list[float]
    #: Drawn as a filled step rather than a line.
    filled: bool = False


@dataclasses.dataclass(frozen=True)
class Limit:
    """A horizontal line."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    series: list[Series]
    limits: list[Limit]


_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed"
_TEAL = "#0d9488"


def charts(request: Request, summary: Summary) -> list[Chart]:
    points = summary.timeline
    column = {key: [point[key] for point in points] for key in points[0]} if points else {}
    if not column:
        return []
    spent_usd: list[float] = []
    # Provisioned concurrency is paid by time and count, the rest with the requests.
    kept_usd = summary.cost.provisioned_kept_usd
    requests_usd = (summary.cost.total_usd - kept_usd) / summary.served if summary.served else 0.0
    lengths_s = [end - start for start, end in zip(column["start_s"], column["end_s"], strict=True)]
    kept = [length * wanted for length, wanted in zip(lengths_s, column["provisioned_wanted"], strict=True)]
    kept_unit_usd = kept_usd / sum(kept) if sum(kept) else 0.0
    for requests, throttles, wanted in zip(column["requests"], column["throttles"], kept, strict=True):
        before = spent_usd[-1] if spent_usd else 0.0
        spent_usd.append(before + (requests - throttles) * requests_usd + wanted * kept_unit_usd)
    peak, mean = column["concurrency_peak"], column["concurrency_mean"]
    found = [
        Chart(
            "Concurrency against the limits",
            "requests in flight",
            [Series("peak", "#93c5fd", peak, filled=True), Series("mean", _BLUE, mean)],
            _limits(request, summary),
        ),
        _states(column),
        Chart("Requests", "in each stretch", [Series("requests", _PURPLE, column["requests"])], []),
        Chart("Cold starts", "in each stretch", [Series("cold starts", _ORANGE, column["cold_starts"], True)], []),
        Chart("Throttles", "in each stretch", [Series("throttles", _RED, column["throttles"], True)], []),
        Chart("Cost so far", "USD", [Series("all of it", _BLUE, spent_usd)], []),
    ]
    if summary.provisioned is not None:
        series = [
            Series("asked for", "#99f6e4", column["provisioned_wanted"], filled=True),
            Series("busy", _TEAL, column["provisioned_busy"]),
        ]
        found.insert(2, Chart("Provisioned concurrency", "environments", series, []))
        spilled = [Series("spillovers", _ORANGE, column["spillovers"], filled=True)]
        found.insert(3, Chart("Spillovers", "in each stretch", spilled, []))
    return found


def _states(column: dict[str, list[float]]) -> Chart:
    """Stacked: each series is drawn over the ones that it is part of, the sum of all first."""
    layers = [
        ("idle", "#d1fae5", column["idle"]),
        ("busy", _GREEN, column["busy"]),
        ("init", _ORANGE, column["init"]),
        ("provisioned, idle", "#99f6e4", column["provisioned_idle"]),
        ("provisioned, busy", _TEAL, column["provisioned_busy"]),
    ]
    series: list[Series] = []
    sums = [0.0] * len(column["idle"])
    for name, colour, values in reversed(layers):
        sums = [below + value for below, value in zip(sums, values, strict=True)]
        if any(values):
            series.append(Series(name, colour, sums, filled=True))
    return Chart("Environments by state", "environments, stacked", series[::-1], [])


def _limits(request: Request, summary: Summary) -> list[Limit]:
    everyone, named = request.reservations()
    limits = [Limit(f"reserved {name}", count) for name, count in sorted(named.items())]
    if everyone is not None and summary.functions_count == 1:
        limits.append(Limit("reserved", everyone))
    # Far above everything, it would flatten the curve.
    if not limits or summary.peak_concurrency > request.account_concurrency / 10:
        limits.append(Limit("account", request.account_concurrency))
    return limits


def visible_top(chart: Chart) -> float:
    """The highest value that the chart must show: limits only if they are near the curve."""
    top = max((max(series.values, default=0.0) for series in chart.series), default=0.0)
    near = [limit.value for limit in chart.limits if limit.value <= 2.5 * top]
    return max([top, *near]) or 1.0


def check_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise WorkloadError("--png needs matplotlib: pip install 'lambent[plot]'; --html needs nothing")


def write_png(path: Path, request: Request, summary: Summary) -> None:
    check_matplotlib()
    from matplotlib.figure import Figure

    found = charts(request, summary)
    starts_s = [point["start_s"] for point in summary.timeline]
    figure = Figure(figsize=(12, 2.6 * max(1, (len(found) + 1) // 2)), layout="constrained")
    for number, chart in enumerate(found, 1):
        axes = figure.add_subplot((len(found) + 1) // 2, 2, number)
        for series in chart.series:
            if series.filled:
                axes.fill_between(starts_s, series.values, step="post", color=series.colour, label=series.name)
            else:
                axes.plot(starts_s, series.values, color=series.colour, label=series.name, linewidth=1)
        for limit in chart.limits:
            if limit.value <= visible_top(chart):
                axes.axhline(limit.value, color=_RED, linestyle="--", linewidth=1, label=limit.name)
        axes.set_ylim(0, visible_top(chart) * 1.08)
        axes.set_title(chart.title, fontsize=10)
        axes.set_xlabel("seconds", fontsize=8)
        axes.legend(fontsize=7)
    figure.savefig(path, format="png", dpi=110)

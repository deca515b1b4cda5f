"""What the benchmarks report: figures with their promises, the table, and the verdicts.

A promise has two bounds: `must`, below which a change is refused, and `aim`, what the design wants. It judges
either the value itself or its ratio to the floor, measured in the same run on the same machine.
"""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Promise:
    """Bounds of one figure."""

    judges: Literal["value", "ratio"]
    better: Literal["lower", "higher"]
    must: float | None
    aim: float

    def holds(self, measured: float, bound: float | None) -> bool:
        """Whether the measured value is on the right side of a bound."""
        if bound is None:
            return True
        return measured <= bound if self.better == "lower" else measured >= bound


@dataclass(slots=True)
class Figure:
    """One row of the table. `value`, `floor` are in `unit`; `ratio` is the median of the rounds' ratios."""

    name: str
    unit: str
    value: float | None
    floor: float | None = None
    ratio: float | None = None
    promise: Promise | None = None
    failure: str | None = None  # why there is no value, or why it may not be trusted
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Literal["aim", "must", "missed", "info"]:
        """The best bound that holds; a figure without a promise only informs."""
        if self.failure:
            return "missed"
        if self.promise is None or self.value is None:  # no value and no failure: only the floor was measured
            return "info"
        measured = self.value if self.promise.judges == "value" else self.ratio
        if measured is None or not self.promise.holds(measured, self.promise.must):
            return "missed"
        return "aim" if self.promise.holds(measured, self.promise.aim) else "must"

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
        return {**asdict(self), "verdict": self.verdict}


# The promises of the design, by the name under which the measurements report.
PROMISES = {
    "warm latency p50, 1 client": Promise("ratio", "lower", 2.5, 1.5),
    "throughput, 32 clients": Promise("ratio", "higher", 0.4, 0.6),
    "cold start, trivial handler, p50": Promise("value", "lower", 15, 10),
    "cold start, trivial handler, p99": Promise("value", "lower", 40, 25),
    "SnapStart restore, Init of 2 s and 50 MB, p50": Promise("value", "lower", 15, 8),
    "SnapStart restore, Init of 2 s and 50 MB, p99": Promise("value", "lower", 50, 25),
    "environments started a second": Promise("value", "higher", 60, 100),
    "proportional memory of an idle environment": Promise("value", "lower", 8, 4),
    "lambent up to the ready line": Promise("value", "lower", 1500, 700),
    "server resident when idle": Promise("value", "lower", None, 100),
    "Node.js warm latency p50, against Python's": Promise("ratio", "lower", 2.0, 1.5),
    "Node.js cold start p50, against `node -e 0` alone": Promise("ratio", "lower", 1.3, 1.0),
    "what an extension told of INVOKE adds to a warm call, p50": Promise("value", "lower", 1000, 500),
    "throughput, 32 clients, freezing against not": Promise("ratio", "higher", 0.95, 0.98),
    "environments of one function, started a second": Promise("value", "higher", 80, 200),
}


def figure(name: str, unit: str, value: float | None, **more: Any) -> Figure:
    """A figure with the promise that is known under its name."""
    return Figure(name, unit, value, promise=PROMISES.get(name), **more)


def compared(name: str, unit: str, lambent: list[float], floor: list[float], **detail: Any) -> Figure:
    """A figure from rounds: medians of both, and the median of the ratios within each round."""
    ratios = [ours / theirs for ours, theirs in zip(lambent, floor, strict=True)]
    rounds = {"lambent": lambent, "floor": floor, "ratios": [round(ratio, 3) for ratio in ratios]}
    return figure(
        name,
        unit,
        statistics.median(lambent),
        floor=statistics.median(floor),
        ratio=statistics.median(ratios),
        detail={"rounds": rounds, **detail},
    )


def quantity(number: float | None, unit: str) -> str:
    """A number as a person reads it: three digits that matter, thousands apart."""
    if number is None:
        return "–"
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    return f"{number:,.{digits}f} {unit}".rstrip()


def table(figures: list[Figure]) -> Table:
    """The one table at the end of a run."""
    grid = Table(title="Lambent against the floor", title_justify="left")
    grid.add_column("what")
    for column in ("Lambent", "floor", "ratio", "must", "aim"):
        grid.add_column(column, justify="right", no_wrap=True)
    grid.add_column("verdict")
    looks = {"aim": "[green]aim held", "must": "[yellow]must held", "missed": "[bold red]missed", "info": ""}
    for row in figures:
        must = aim = "–"
        if row.promise is not None:
            sign = "≤" if row.promise.better == "lower" else "≥"
            unit = row.unit if row.promise.judges == "value" else "x"
            aim = f"{sign} {row.promise.aim:g} {unit}"
            must = "–" if row.promise.must is None else f"{sign} {row.promise.must:g} {unit}"
        verdict = looks[row.verdict] + (f" ({row.failure})" if row.failure else "")
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}x"
        grid.add_row(row.name, quantity(row.value, row.unit), quantity(row.floor, row.unit), ratio, must, aim, verdict)
    return grid

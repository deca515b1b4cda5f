"""What `lambent top` shows: two samples of /_lambent/top make a View, a View and a size make the lines of a frame.

Pure: no clock, terminal or network. Counters become what happened between the samples; percentiles are of the
invocations that ended in between, to 1 % (metric_point). A server that has started anew in between counts from zero.

A frame always fits: the head (totals) stands, functions that have no room are counted in the last line, and where the
terminal is narrow a function takes two lines instead of one.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from rich.text import Text

from lambent.telemetry.metric_point import Point, value_of

#: State: what a cell looks like, with and without colour; its name in the legend. In the order of drawing.
CELLS: Final = {
    "provisioned-busy": ("◆", "bold bright_magenta", "pc busy"),
    "busy": ("■", "bold yellow", "busy"),
    "starting": ("+", "bold cyan", "init"),
    "resetting": ("x", "bold red", "reset"),
    "provisioned-idle": ("◇", "magenta", "pc idle"),
    "idle": ("□", "green", "idle"),
    "frozen": ("·", "bold blue", "frozen"),
    "stopping": ("-", "dim", "stop"),
}
REASONS: Final = {
    "ConcurrentInvocationLimitExceeded": "account concurrency",
    "ReservedFunctionConcurrentInvocationLimitExceeded": "reserved",
    "FunctionInvocationRateLimitExceeded": "rate",
    "ReservedFunctionInvocationRateLimitExceeded": "reserved rate",
    "CallerRateLimitExceeded": "caller rate",
    "ConcurrentSnapshotCreateLimitExceeded": "snapshots",
}
WIDE: Final = 132
MIB: Final = 1_048_576


class AccountLevels(msgspec.Struct):
    """As core.statistics.AccountStatistics."""

    account: str
    region: str
    concurrency_max: int
    in_flight: int
    reserved: int
    unreserved_in_flight: int
    unreserved_max: int
    provisioned: int = 0
    provisioned_in_flight: int = 0


class FunctionSample(msgspec.Struct):
    """Levels of now, and counts since the server's start."""

    account: str
    region: str
    name: str
    in_flight: int
    reserved: int | None = None
    provisioned: int = 0
    provisioned_in_flight: int = 0
    memory_mib: int = 0
    environments: dict[str, int] = {}
    cold_starts: int = 0
    throttles: dict[str, int] = {}
    invocations: int = 0
    errors: int = 0
    duration_buckets: dict[int, float] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        return self.account, self.region, self.name


class WorkerLevels(msgspec.Struct):
    memory_mib: int
    memory_used_mib: int
    environments: int
    environments_max: int


class MachineSample(msgspec.Struct):
    processors: int
    vcpus_promised: float
    cpu_ticks: int
    cpu_idle_ticks: int
    memory_bytes: int
    memory_available_bytes: int


class Sample(msgspec.Struct):
    """The page /_lambent/top."""

    at_s: float
    pid: int
    draining: bool
    accounts: list[AccountLevels]
    functions: list[FunctionSample]
    leaving: dict[str, int]
    workers: list[WorkerLevels]
    machine: MachineSample


class Row(msgspec.Struct):
    """One function, or the total (without name and limits). Rates are a second; counts are of the interval."""

    name: str
    account: str = ""
    region: str = ""
    in_flight: int = 0
    reserved: int | None = None
    #: What bounds it: its reservation, or the account's unreserved pool and its provisioned concurrency.
    limit: int = 0
    provisioned: int = 0
    provisioned_in_flight: int = 0
    memory_mib: int = 0
    environments: dict[str, int] = {}
    requests_per_s: float = 0.0
    invocations: int = 0
    cold_starts: int = 0
    errors: int = 0
    throttles: dict[str, int] = {}
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @property
    def throttled(self) -> int:
        return sum(self.throttles.values())


class Machine(msgspec.Struct):
    processors: int
    vcpus_promised: float
    cpu_percent: float | None
    memory_bytes: int
    memory_used_bytes: int
    memory_promised_mib: int
    memory_promised_max_mib: int
    environments: int
    environments_max: int


class View(msgspec.Struct):
    """One look; `interval_s` None: there was no earlier sample, so that no rates are known."""

    interval_s: float | None
    draining: bool
    accounts: list[AccountLevels]
    machine: Machine
    total: Row
    functions: list[Row]


# --- samples to a view -------------------------------------------------------------------------------------


def look(before: Sample | None, now: Sample) -> View:
    """What `now` shows, and what has happened since `before`."""
    if before is not None and before.pid != now.pid:
        before = None
    earlier = {each.key: each for each in before.functions} if before else {}
    interval_s = now.at_s - before.at_s if before else None
    unreserved = {(each.account, each.region): each.unreserved_max for each in now.accounts}
    rows: list[Row] = []
    whole = Row("total", environments=Counter(now.leaving), throttles=Counter())
    durations: Counter[int] = Counter()
    for function in now.functions:
        was = earlier.get(function.key)
        row, buckets = _row(was, function, interval_s)
        row.limit = row.reserved if row.reserved is not None else unreserved.get(function.key[:2], 0) + row.provisioned
        rows.append(row)
        durations.update(buckets)
        _add(whole, row)
    whole.limit = sum(each.concurrency_max for each in now.accounts)
    whole.requests_per_s = whole.invocations / interval_s if interval_s else 0.0
    whole.p50_ms, whole.p95_ms, whole.p99_ms = _percentiles(durations)
    whole.environments, whole.throttles = dict(whole.environments), dict(whole.throttles)
    return View(interval_s, now.draining, now.accounts, _machine(before, now), whole, rows)


def _row(was: FunctionSample | None, now: FunctionSample, interval_s: float | None) -> tuple[Row, dict[int, int]]:
    row = Row(
        now.name,
        now.account,
        now.region,
        now.in_flight,
        now.reserved,
        provisioned=now.provisioned,
        provisioned_in_flight=now.provisioned_in_flight,
        memory_mib=now.memory_mib,
        environments=now.environments,
    )
    if not interval_s:
        return row, {}
    # Unknown a moment ago: all of its counts are new. Retired versions take their counts along.
    was = was or FunctionSample(now.account, now.region, now.name, 0)
    row.invocations = max(0, now.invocations - was.invocations)
    row.requests_per_s = row.invocations / interval_s
    row.errors = max(0, now.errors - was.errors)
    row.cold_starts = max(0, now.cold_starts - was.cold_starts)
    row.throttles = _grown(was.throttles, now.throttles)
    buckets = _grown(was.duration_buckets, now.duration_buckets)
    row.p50_ms, row.p95_ms, row.p99_ms = _percentiles(buckets)
    return row, buckets


def _grown(was: dict[Any, Any], now: dict[Any, Any]) -> dict[Any, int]:
    return {key: int(count - was.get(key, 0)) for key, count in now.items() if count > was.get(key, 0)}


def _percentiles(buckets: dict[int, int]) -> tuple[float | None, float | None, float | None]:
    if not buckets:
        return None, None, None
    low, high = value_of(min(buckets)), value_of(max(buckets))
    point = Point(sum(buckets.values()), 0.0, low, high, dict(buckets))
    return point.percentile(50), point.percentile(95), point.percentile(99)


def _add(whole: Row, row: Row) -> None:
    whole.in_flight += row.in_flight
    whole.provisioned += row.provisioned
    whole.provisioned_in_flight += row.provisioned_in_flight
    whole.invocations += row.invocations
    whole.errors += row.errors
    whole.cold_starts += row.cold_starts
    for mine, more in ((whole.environments, row.environments), (whole.throttles, row.throttles)):
        for name, count in more.items():
            mine[name] = mine.get(name, 0) + count


def _machine(before: Sample | None, now: Sample) -> Machine:
    is_ = now.machine
    percent = None
    if before is not None and is_.cpu_ticks > before.machine.cpu_ticks:
        idle = is_.cpu_idle_ticks - before.machine.cpu_idle_ticks
        percent = min(100.0, max(0.0, 100 * (1 - idle / (is_.cpu_ticks - before.machine.cpu_ticks))))
    return Machine(
        processors=is_.processors,
        vcpus_promised=is_.vcpus_promised,
        cpu_percent=percent,
        memory_bytes=is_.memory_bytes,
        memory_used_bytes=is_.memory_bytes - is_.memory_available_bytes,
        memory_promised_mib=sum(each.memory_used_mib for each in now.workers),
        memory_promised_max_mib=sum(each.memory_mib for each in now.workers),
        environments=sum(each.environments for each in now.workers),
        environments_max=sum(each.environments_max for each in now.workers),
    )


SORTS: Final[dict[str, Callable[[Row], Any]]] = {
    "concurrency": lambda row: -row.in_flight,
    "requests": lambda row: -row.requests_per_s,
    "p99": lambda row: -(row.p99_ms or 0.0),
    "errors": lambda row: -(row.errors + row.throttled),
    "name": lambda row: row.name,
}


def chosen(rows: Iterable[Row], pattern: str | None, sort: str) -> list[Row]:
    """The rows that match, in order; equals by name."""
    found = [row for row in rows if pattern is None or matches(row.name, pattern)]
    return sorted(found, key=lambda row: (SORTS[sort](row), row.name))


def matches(name: str, pattern: str) -> bool:
    """With * or ? the whole name, else a part of it."""
    return fnmatch.fnmatchcase(name, pattern) if {"*", "?"} & set(pattern) else pattern in name


# --- pieces of a line --------------------------------------------------------------------------------------


def bar(width: int, part: float, whole: float, style: str = "green", marked: float = 0.0) -> Text:
    """`part` of `whole`; the first `marked` of it in another colour. More than 0 shows, less than all leaves room."""
    if width <= 0:
        return Text()
    share = min(1.0, part / whole) if whole > 0 else 0.0
    filled = round(share * width)
    if share > 0:
        filled = max(1, filled)
    if share < 1:
        filled = min(width - 1, filled)
    if share >= 1:
        style = "bold red"
    special = min(filled, math.ceil(marked / whole * width)) if marked > 0 and whole > 0 else 0
    return Text.assemble(
        ("█" * special, "magenta"), ("█" * (filled - special), style), ("░" * (width - filled), "bright_black")
    )


def cells(width: int, environments: dict[str, int]) -> Text:
    """One cell for each environment; where there are more than fit, each state gets its share, and at least one."""
    present = [(state, environments[state]) for state in CELLS if environments.get(state)]
    total = sum(count for _, count in present)
    drawn = dict(present)
    suffix = ""
    if total > width:
        suffix = f" {total:,}"
        room = max(len(present), width - len(suffix))
        drawn = {state: max(1, count * room // total) for state, count in present}
        while sum(drawn.values()) > room:
            drawn[max(drawn, key=drawn.__getitem__)] -= 1
    text = Text(no_wrap=True)
    for state, count in drawn.items():
        glyph, style, _ = CELLS[state]
        text.append(glyph * count, style)
    return text.append(suffix, "dim")


def number(value: float) -> str:
    """At most five characters up to 99,999."""
    if value >= 100:
        return f"{value:,.0f}" if value < 10_000 else f"{value / 1_000:.0f}k"
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def milliseconds(value: float | None) -> str:
    """As long as it needs to be, at most six characters: `1.23ms`, `950ms`, `12.3s`."""
    if value is None:
        return "–"
    if value < 9.995:
        return f"{value:.2f}ms"
    if value < 99.95:
        return f"{value:.1f}ms"
    return f"{value:.0f}ms" if value < 999.5 else f"{value / 1_000:.1f}s" if value < 99_950 else f"{value / 1_000:.0f}s"


def gib(value: float) -> str:
    return f"{value / 1_073_741_824:.1f}"


# --- the frame ---------------------------------------------------------------------------------------------


def frame(
    view: View,
    width: int,
    height: int | None = None,
    *,
    title: str = "Lambent",
    sort: str = "concurrency",
    pattern: str | None = None,
    first: int = 0,
    notice: str = "",
) -> list[Text]:
    """The lines, none longer than `width` and not more than `height` (None: as many as there are). `first`: how many
    functions to leave out at the top. `notice`: shown instead of the keys in the last line."""
    rows = chosen(view.functions, pattern, sort)
    lines = _head(view, width, title, sort, pattern)
    foot = Text(notice, "bold red") if notice else _keys(height is not None)
    each = 1 if width >= WIDE else 2
    room = len(rows) if height is None else max(0, (height - len(lines) - 2) // each)
    first = max(0, min(first, len(rows) - room))
    lines.append(_heading(width))
    for row in rows[first : first + room]:
        lines += _function_lines(row, width, view.interval_s is not None)
    hidden = len(rows) - len(rows[first : first + room])
    if not rows:
        lines.append(Text("no functions" if pattern is None else f"no function matches {pattern}", "dim"))
    if hidden:
        foot = Text.assemble((f"{hidden} more function{'s' * (hidden != 1)} (j, k)  ", "bold"), foot)
    if height is not None:
        lines = lines[: max(0, height - 1)]
        lines += [Text()] * (height - 1 - len(lines))
    if height is not None or hidden or notice:
        lines.append(foot)
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return lines


def _keys(live: bool) -> Text:
    return Text("q quit   s sort   j/k scroll", "dim") if live else Text()


def _head(view: View, width: int, title: str, sort: str, pattern: str | None) -> list[Text]:
    shown = f"   functions: {pattern}" if pattern else ""
    interval = f"   every {view.interval_s:.1f} s" if view.interval_s is not None else "   first look"
    draining = ("   draining", "bold red") if view.draining else ""
    lines = [Text.assemble((title, "bold"), (f"{interval}   by {sort}{shown}", "dim"), draining)]
    # The account's own bar, unreserved and provisioned beside it.
    bar_width = min(40, max(8, width - 72))
    for account in view.accounts[:2]:
        text = Text.assemble("account ", bar(bar_width, account.in_flight, account.concurrency_max))
        text.append(f" {account.in_flight:,}/{account.concurrency_max:,}", "bold")
        text.append(f"  unreserved {account.unreserved_in_flight:,}/{account.unreserved_max:,}")
        text.append(f"  reserved {account.reserved:,}" if account.reserved else "")
        if account.provisioned:
            text.append(f"  provisioned {account.provisioned_in_flight:,}/{account.provisioned:,}", "magenta")
        if len(view.accounts) > 1:
            text.append(f"  {account.account} {account.region}", "dim")
        lines.append(text)
    if len(view.accounts) > 2:
        lines.append(Text(f"… and {len(view.accounts) - 2} more accounts and regions", "dim"))
    machine = view.machine
    small = min(20, max(6, (width - 62) // 2))
    percent = "–" if machine.cpu_percent is None else f"{machine.cpu_percent:.0f}%"
    lines.append(
        Text.assemble(
            "cpu    ",
            bar(small, machine.cpu_percent or 0, 100),
            (f" {percent:>4}", "bold"),
            f" of {machine.processors}, promised {machine.vcpus_promised:.1f} vCPU   memory ",
            bar(small, machine.memory_used_bytes, machine.memory_bytes),
            (f" {gib(machine.memory_used_bytes)}/{gib(machine.memory_bytes)}", "bold"),
        )
    )
    lines.append(
        Text.assemble(
            "promised ",
            bar(small, machine.memory_promised_mib, machine.memory_promised_max_mib, "yellow"),
            f" {gib(machine.memory_promised_mib * MIB)}/{gib(machine.memory_promised_max_mib * MIB)} GiB",
            f" in {machine.environments:,}/{machine.environments_max:,} environments",
        )
    )
    lines += _total_lines(view)
    lines.append(Text.assemble("envs   ", cells(max(8, width - 7), view.total.environments)))
    lines.append(_legend(view.total.environments))
    return lines


def _total_lines(view: View) -> list[Text]:
    total = view.total
    if view.interval_s is None:
        return [Text("total  …", "dim"), Text()]
    first = Text.assemble("total  ", (f"{number(total.requests_per_s)} requests/s", "bold"))
    for title, value in (("p50", total.p50_ms), ("p95", total.p95_ms), ("p99", total.p99_ms)):
        first.append(f"  {title} {milliseconds(value)}")
    second = Text("      ")
    second.append(f" cold {total.cold_starts:,}", "cyan" if total.cold_starts else "")
    second.append(f"  errors {total.errors:,}", "bold red" if total.errors else "")
    second.append(f"  throttled {total.throttled:,}", "bold red" if total.throttled else "")
    return [first, second.append(_reasons(total), "red")]


def _reasons(row: Row) -> str:
    if not row.throttles:
        return ""
    most = sorted(row.throttles.items(), key=lambda item: -item[1])
    return " (" + ", ".join(f"{REASONS.get(reason, reason)} {count:,}" for reason, count in most) + ")"


def _legend(environments: dict[str, int]) -> Text:
    text = Text("       ")
    for state, (glyph, style, name) in CELLS.items():
        count = environments.get(state)
        text.append(glyph, style)
        text.append(f"{count:,} {name} " if count else f" {name} ", "bold" if count else "dim")
    return text


_NUMBERS: Final = (("req/s", 7), ("cold", 5), ("thr", 5), ("err", 5), ("p50", 7), ("p95", 7), ("p99", 7))


def _numbers_width() -> int:
    return sum(size for _, size in _NUMBERS)


def _name_width(width: int) -> int:
    if width >= WIDE:
        return 24
    return max(8, min(36, width - _numbers_width()))


def _heading(width: int) -> Text:
    name = "function".ljust(_name_width(width))
    numbers = "".join(title.rjust(size) for title, size in _NUMBERS)
    if width >= WIDE:
        return Text(f"{name} {'concurrency':<26}{numbers}  environments", "bold reverse")
    return Text((name + numbers).ljust(width), "bold reverse")


def _function_lines(row: Row, width: int, rates: bool) -> list[Text]:
    size = _name_width(width)
    name = row.name if len(row.name) < size else row.name[: size - 2] + "…"
    line = Text(name.ljust(size), "bold" if row.in_flight else "")
    values: list[tuple[str, str]] = [("–", "dim")] * len(_NUMBERS)
    if rates:
        values = [
            (number(row.requests_per_s), ""),
            (number(row.cold_starts), "cyan" if row.cold_starts else "dim"),
            (number(row.throttled), "bold red" if row.throttled else "dim"),
            (number(row.errors), "bold red" if row.errors else "dim"),
            *((milliseconds(each), "" if each is not None else "dim") for each in (row.p50_ms, row.p95_ms, row.p99_ms)),
        ]
    numbers = Text()
    for (value, style), (_, column) in zip(values, _NUMBERS, strict=True):
        numbers.append(value.rjust(column), style)
    level = Text.assemble(
        bar(12, row.in_flight, row.limit, marked=row.provisioned_in_flight), f" {row.in_flight:,}/{row.limit:,}"
    )
    if row.reserved is not None:
        level.append(" reserved" if width >= 100 else " res", "dim")
    if row.provisioned:
        level.append(f" pc {row.provisioned_in_flight}/{row.provisioned}", "magenta")
    reasons = Text(_reasons(row), "red")
    if width >= WIDE:
        level.truncate(26, pad=True)
        line.append(" ").append_text(level).append_text(numbers).append("  ")
        return [
            line.append_text(cells(max(4, width - len(line) - len(reasons)), row.environments)).append_text(reasons)
        ]
    line.append_text(numbers)
    second = Text("  ").append_text(level)
    second.append("  ")
    room = width - len(second) - (len(reasons) if len(reasons) < width // 3 else 0)
    second.append_text(cells(max(4, room), row.environments)).append_text(reasons)
    return [line, second]

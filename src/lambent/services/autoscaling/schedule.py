"""When a scheduled action is due: AWS's schedule expressions.

    at(2026-11-23T08:30:00)     once
    rate(5 minutes)             minute(s), hour(s), day(s)
    cron(0 10 ? * MON-FRI *)    minutes hours day-of-month month day-of-week year

Of the two kinds of day in a cron expression one must be `?`. Days of the week are 1 (SUN) to 7 (SAT); `L` is the last
day (of the month; `5L`: its last Thursday), `15W` the weekday nearest to the 15th, `6#3` the third Friday. Times are
of the time zone; one that does not exist, for the clock is put forward, is taken as if it were not, and one that
exists twice counts the first time.
"""

from __future__ import annotations

import calendar
import datetime as dt
import re
import zoneinfo
from collections.abc import Iterator
from typing import Final, Protocol

_MONTHS: Final = {name: number for number, name in enumerate(calendar.month_abbr) if number}
_DAYS: Final = {name: number for number, name in enumerate(("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"), 1)}
_YEAR_MIN, _YEAR_MAX = 1970, 2199
_UNITS: Final = {"minute": 60, "hour": 3_600, "day": 86_400}
_RATE = re.compile(r"rate\(([1-9]\d{0,8}) (minute|hour|day)(s?)\)")
_AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
_LAST: Final = 0
_CRON = re.compile(r"cron\(([^()]*)\)")


class BadSchedule(ValueError):
    """The text says what is wrong."""


class Schedule(Protocol):
    def next_after(self, moment_s: float) -> float | None:
        """The first time after `moment_s`, both in seconds since 1970; None: there is none."""


def parse(expression: str, timezone: str = "", start_s: float = 0.0) -> Schedule:
    """`start_s`: where rates count from. Raises BadSchedule."""
    try:
        zone = zoneinfo.ZoneInfo(timezone or "UTC")
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadSchedule(f"Timezone {timezone} is not known.") from error
    if match := _RATE.fullmatch(expression):
        if (match[1] == "1") == bool(match[3]):
            raise BadSchedule(f"{expression}: one is singular, more are plural.")
        return _Rate(start_s, int(match[1]) * _UNITS[match[2]])
    if match := _AT.fullmatch(expression):
        try:
            return _At(dt.datetime.fromisoformat(match[1]).replace(tzinfo=zone).timestamp())
        except (ValueError, OverflowError) as error:
            raise BadSchedule(f"{expression}: {error}.") from error
    if match := _CRON.fullmatch(expression):
        return _Cron(match[1], zone)
    raise BadSchedule(f"{expression} is none of at(yyyy-mm-ddThh:mm:ss), rate(value unit), cron(fields).")


class _At:
    def __init__(self, moment_s: float) -> None:
        self._moment_s = moment_s

    def next_after(self, moment_s: float) -> float | None:
        return self._moment_s if self._moment_s > moment_s else None


class _Rate:
    def __init__(self, start_s: float, period_s: int) -> None:
        self._start_s = start_s
        self._period_s = period_s

    def next_after(self, moment_s: float) -> float | None:
        if moment_s < self._start_s:
            return self._start_s
        return self._start_s + ((moment_s - self._start_s) // self._period_s + 1) * self._period_s


class _Cron:
    def __init__(self, fields: str, zone: zoneinfo.ZoneInfo) -> None:
        parts = fields.upper().split()
        if len(parts) != 6:
            raise BadSchedule(f"cron({fields}): there must be six fields.")
        minutes, hours, month_days, months, week_days, years = parts
        if (month_days == "?") == (week_days == "?"):
            raise BadSchedule(f"cron({fields}): one of day-of-month and day-of-week must be ?, the other must not.")
        self._zone = zone
        self._minutes = _numbers(minutes, 0, 59)
        self._hours = _numbers(hours, 0, 23)
        self._months = _numbers(months, 1, 12, _MONTHS)
        self._years = _numbers(years, _YEAR_MIN, _YEAR_MAX)
        self._month_days = None if month_days == "?" else _month_days(month_days)
        self._week_days = None if week_days == "?" else _week_days(week_days)

    def next_after(self, moment_s: float) -> float | None:
        try:
            # A day before: where clocks change, local times and moments are not in the same order.
            begin = dt.datetime.fromtimestamp(moment_s, self._zone).date() - dt.timedelta(days=1)
        except (OverflowError, ValueError, OSError):
            return None
        for day in self._days(begin):
            best = None
            for hour in self._hours:
                for minute in self._minutes:
                    found = dt.datetime.combine(day, dt.time(hour, minute), self._zone).timestamp()
                    if found > moment_s and (best is None or found < best):
                        best = found
            if best is not None:
                return best
        return None

    def _days(self, begin: dt.date) -> Iterator[dt.date]:
        for year in self._years:
            if year < begin.year:
                continue
            for month in self._months:
                if (year, month) < (begin.year, begin.month):
                    continue
                for number in sorted(self._days_of(year, month)):
                    day = dt.date(year, month, number)
                    if day >= begin:
                        yield day

    def _days_of(self, year: int, month: int) -> set[int]:
        last = calendar.monthrange(year, month)[1]
        if self._month_days is not None:
            return {day for each in self._month_days for day in _resolved(each, year, month, last)}
        assert self._week_days is not None
        found = set()
        for number, nth in self._week_days:
            # 1 is Sunday here, 6 there.
            first = (number - 2 - calendar.weekday(year, month, 1)) % 7 + 1
            days = list(range(first, last + 1, 7))
            if nth is None:
                found.update(days)
            elif nth == _LAST:
                found.add(days[-1])
            elif nth <= len(days):
                found.add(days[nth - 1])
        return found


def _resolved(day: int | tuple[str, int], year: int, month: int, last: int) -> list[int]:
    """The days of one month that a day-of-month stands for."""
    if isinstance(day, int):
        return [day] if day <= last else []
    number = last if day[1] == 0 else day[1]
    if number > last:
        return []
    if day[0] == "L":
        return [number]
    week_day = calendar.weekday(year, month, number)
    if week_day == calendar.SATURDAY:
        return [number - 1 if number > 1 else 3]
    if week_day == calendar.SUNDAY:
        return [number + 1 if number < last else number - 2]
    return [number]


def _month_days(field: str) -> list[int | tuple[str, int]]:
    """Days, and what depends on the month: ("L", 0) the last day, ("W", n) the weekday nearest to it (0: to the
    last)."""
    found: list[int | tuple[str, int]] = []
    for part in field.split(","):
        if part == "L":
            found.append(("L", 0))
        elif part == "LW":
            found.append(("W", 0))
        elif part.endswith("W"):
            found.append(("W", _number(part[:-1], 1, 31, {})))
        else:
            found += _numbers(part, 1, 31)
    return found


def _week_days(field: str) -> list[tuple[int, int | None]]:
    """Days of the week, each with which of the month's it is: None is all of them, `_LAST` the last."""
    found: list[tuple[int, int | None]] = []
    for part in field.split(","):
        day, hash_, nth = part.partition("#")
        if hash_:
            found.append((_number(day, 1, 7, _DAYS), _number(nth, 1, 5, {})))
        elif part == "L":
            found.append((7, None))
        elif part.endswith("L"):
            found.append((_number(part[:-1], 1, 7, _DAYS), _LAST))
        else:
            found += [(number, None) for number in _numbers(part, 1, 7, _DAYS)]
    return found


def _numbers(field: str, low: int, high: int, names: dict[str, int] | None = None) -> list[int]:
    """All that a field of numbers, ranges, steps and lists stands for, in order."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, 1, high, {}) if slash else 1
        if span == "*":
            first, last = low, high
        else:
            left, dash, right = span.partition("-")
            first = _number(left, low, high, names or {})
            last = _number(right, low, high, names or {}) if dash else (high if slash else first)
        if first > last:  # FRI-MON
            found.update(range(first, high + 1, step))
            found.update(range(low, last + 1, step))
        else:
            found.update(range(first, last + 1, step))
    return sorted(found)


def _number(text: str, low: int, high: int, names: dict[str, int]) -> int:
    number = {name.upper(): value for name, value in names.items()}.get(text)
    if number is None:
        if not (text.isascii() and text.isdecimal() and len(text) < 5):
            raise BadSchedule(f"cron: {text or 'nothing'} is not a number from {low} to {high}.")
        number = int(text)
    if not low <= number <= high:
        raise BadSchedule(f"cron: {text} is not from {low} to {high}.")
    return number

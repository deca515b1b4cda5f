"""AWS's schedule expressions."""

from __future__ import annotations

import datetime as dt
import itertools
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.services.autoscaling.schedule import BadSchedule, parse


def at(text: str, zone: str = "UTC") -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def times(expression: str, after: str, count: int, zone: str = "UTC") -> list[str]:
    found, moment_s, schedule = [], at(after, zone), parse(expression, zone)
    for _ in range(count):
        following_s = schedule.next_after(moment_s)
        if following_s is None:
            break
        moment_s = following_s
        found.append(dt.datetime.fromtimestamp(moment_s, ZoneInfo(zone)).strftime("%Y-%m-%d %a %H:%M"))
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("cron(0 10 * * ? *)", ["2026-11-23 Mon 10:00", "2026-11-24 Tue 10:00"]),
        ("cron(15 12 ? * SAT,SUN *)", ["2026-11-28 Sat 12:15", "2026-11-29 Sun 12:15"]),
        ("cron(0 18 ? * MON-FRI *)", ["2026-11-23 Mon 18:00", "2026-11-24 Tue 18:00"]),
        ("cron(0 8 1 * ? *)", ["2026-12-01 Tue 08:00", "2027-01-01 Fri 08:00"]),
        ("cron(0/15 * * * ? *)", ["2026-11-23 Mon 09:45", "2026-11-23 Mon 10:00"]),
        ("cron(0/5 8-17 ? * 2-6 *)", ["2026-11-23 Mon 09:35", "2026-11-23 Mon 09:40"]),
        ("cron(0 0 L * ? *)", ["2026-11-30 Mon 00:00", "2026-12-31 Thu 00:00"]),
        ("cron(0 0 LW * ? *)", ["2026-11-30 Mon 00:00", "2026-12-31 Thu 00:00", "2027-01-29 Fri 00:00"]),
        ("cron(0 0 15W * ? *)", ["2026-12-15 Tue 00:00", "2027-01-15 Fri 00:00", "2027-02-15 Mon 00:00"]),
        ("cron(0 0 1W 5 ? 2027)", ["2027-05-03 Mon 00:00"]),
        ("cron(0 0 ? * 6#3 *)", ["2026-12-18 Fri 00:00", "2027-01-15 Fri 00:00"]),
        ("cron(0 0 ? * 5L *)", ["2026-11-26 Thu 00:00", "2026-12-31 Thu 00:00"]),
        ("cron(0 0 ? * FRI-MON *)", ["2026-11-27 Fri 00:00", "2026-11-28 Sat 00:00", "2026-11-29 Sun 00:00"]),
        ("cron(0 0 29 2 ? *)", ["2028-02-29 Tue 00:00", "2032-02-29 Sun 00:00"]),
        ("cron(0 0 30 FEB ? *)", []),
        ("cron(0 0 1 1 ? 2027-2028)", ["2027-01-01 Fri 00:00", "2028-01-01 Sat 00:00"]),
        ("at(2026-11-23T09:31:00)", ["2026-11-23 Mon 09:31"]),
        ("at(2026-11-23T09:30:00)", []),
    ],
)
def test_the_next_times(expression: str, expected: list[str]) -> None:
    found = times(expression, "2026-11-23T09:30:00", max(len(expected), 2))
    assert found[: len(expected)] == expected
    assert expected or found == []


def test_time_zones_and_their_changes() -> None:
    daily = "cron(30 2 * * ? *)"
    # 02:30 does not exist on the 28th, and exists twice on the 31st of October.
    assert times(daily, "2027-03-27T03:00:00", 2, "Europe/Berlin") == ["2027-03-28 Sun 03:30", "2027-03-29 Mon 02:30"]
    assert times(daily, "2027-10-30T03:00:00", 2, "Europe/Berlin") == ["2027-10-31 Sun 02:30", "2027-11-01 Mon 02:30"]
    assert parse("at(2026-11-23T09:00:00)", "America/New_York").next_after(0) == at("2026-11-23T14:00:00")


def test_rates_count_from_the_start() -> None:
    start_s = at("2026-11-23T09:00:00")
    schedule = parse("rate(5 minutes)", "", start_s)
    assert schedule.next_after(start_s - 100) == start_s
    assert schedule.next_after(start_s) == start_s + 300
    assert schedule.next_after(start_s + 299) == start_s + 300
    assert parse("rate(1 day)", "", start_s).next_after(start_s) == start_s + 86_400


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            "",
            "now",
            "rate(0 minutes)",
            "rate(1 minutes)",
            "rate(2 minute)",
            "rate(1.5 hours)",
            "at(2026-13-01T00:00:00)",
        ),
        *("at(2026-11-23)", "cron(* * * * * *)", "cron(* * ? * ? *)", "cron(60 * * * ? *)", "cron(* 24 * * ? *)"),
        *(
            "cron(* * 0 * ? *)",
            "cron(* * 32 * ? *)",
            "cron(* * * 13 ? *)",
            "cron(* * ? * 8 *)",
            "cron(* * ? * MON#6 *)",
        ),
        *("cron(* * * * ? 1969)", "cron(* * * * ?)", "cron(*/0 * * * ? *)", "cron(a * * * ? *)", "cron(1, * * * ? *)"),
        *("cron(-1 * * * ? *)", "cron(99999999999 * * * ? *)", "cron(٣ * * * ? *)", "cron(* * ? * FOO *)"),
    ],
)
def test_what_is_no_schedule(wrong: str) -> None:
    with pytest.raises(BadSchedule):
        parse(wrong)


@pytest.mark.parametrize("zone", ["Nowhere/Land", "../../etc/passwd", "/etc/localtime", "\0", "x" * 500])
def test_what_is_no_time_zone(zone: str) -> None:
    with pytest.raises(BadSchedule):
        parse("rate(1 day)", zone)


@given(st.text(max_size=40), st.sampled_from(["{}", "cron({})", "at({})", "rate({})"]))
def test_any_text_is_a_schedule_or_refused(text: str, form: str) -> None:
    try:
        schedule = parse(form.format(text))
    except BadSchedule:
        return
    following_s = schedule.next_after(1.8e9)
    assert following_s is None or following_s > 1.8e9


fields = st.tuples(
    st.sampled_from(["0", "*", "0/7", "3,30-33", "59"]),
    st.sampled_from(["0", "*", "2", "1/5", "22-23"]),
    st.sampled_from([("?", "*"), ("?", "MON-FRI"), ("?", "3#1"), ("?", "6L"), ("L", "?"), ("13", "?"), ("15W", "?")]),
    st.sampled_from(["*", "2", "JAN-MAR", "1/4"]),
)


@given(fields, st.integers(1_700_000_000, 1_900_000_000), st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]))
def test_times_only_go_forward_and_fit(parts: tuple[str, str, tuple[str, str], str], moment_s: int, zone: str) -> None:
    minutes, hours, (month_days, week_days), months = parts
    schedule = parse(f"cron({minutes} {hours} {month_days} {months} {week_days} *)", zone)
    found = [float(moment_s)]
    for _ in range(5):
        following_s = schedule.next_after(found[-1])
        assert following_s is not None
        found.append(following_s)
    assert all(one < two for one, two in itertools.pairwise(found))
    # Nothing in between was passed over.
    middle_s = (found[1] + found[2]) / 2
    assert schedule.next_after(middle_s) == found[2]
    local = [dt.datetime.fromtimestamp(each, ZoneInfo(zone)) for each in found[1:]]
    if minutes.isdecimal():
        assert all(each.minute == int(minutes) for each in local)
    assert all(each.second == 0 for each in local)

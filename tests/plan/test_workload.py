"""Streams have the rates and durations that were asked for; bad files are told in one line."""

from __future__ import annotations

import csv
import gzip
import itertools
import random
import statistics
from pathlib import Path

import pytest

from lambent.model.limits import NS_PER_S
from lambent.plan import workload
from lambent.plan.workload import PlannedFunction, Trace, WorkloadError

S = NS_PER_S
HEADER = "arrival_s,duration_s\n"


def stream(rate: workload.Rate, seconds: float, poisson: bool = True, seed: int = 1) -> list[float]:
    arrivals = workload.generated(rate, seconds, workload.constant(0.1), 0, poisson=poisson, rng=random.Random(seed))
    times = [arrival_ns / S for arrival_ns, _, _, _ in arrivals]
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)
    return times


def test_constant_arrivals_are_even() -> None:
    assert stream(workload.steady(4), 2, poisson=False) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert len(stream(workload.steady(0.3), 1_000, poisson=False)) == 300


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    times = stream(workload.steady(20), 2_000)
    # Five standard deviations of a Poisson count.
    assert abs(len(times) - 40_000) < 5 * 200
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(0.05, rel=0.03)
    assert stream(workload.steady(20), 2_000) == times
    assert stream(workload.steady(20), 2_000, seed=2) != times


@pytest.mark.parametrize("poisson", [True, False])
@pytest.mark.parametrize(
    ("rate", "first_half"),
    [
        (workload.ramp(0, 40, 1_000), 0.25),
        (workload.spike(5, 50, 600, 100, 1_000), 2_500 / 9_500),
        (workload.day(5, 25, 1_000), 0.5),
    ],
)
def test_shapes(rate: workload.Rate, first_half: float, poisson: bool) -> None:
    times = stream(rate, 1_000, poisson)
    assert len(times) == pytest.approx(rate.mean * 1_000, rel=0.04 if poisson else 0.002)
    assert sum(time < 500 for time in times) / len(times) == pytest.approx(first_half, abs=0.02)


def test_a_rate_of_zero_is_no_request() -> None:
    assert stream(workload.steady(0), 10) == []


def test_lognormal_durations() -> None:
    draw = workload.lognormal(0.2, 0.8, random.Random(3))
    values = [draw() / S for _ in range(100_000)]
    assert statistics.mean(values) == pytest.approx(0.2, rel=0.02)
    assert statistics.stdev(values) == pytest.approx(0.16, rel=0.05)


def test_durations_through_percentiles() -> None:
    draw = workload.empirical([(0, 0.01), (50, 0.1), (99, 2.0), (100, 8.0)], random.Random(3))
    values = sorted(draw() / S for _ in range(100_000))
    assert values[50_000] == pytest.approx(0.1, rel=0.05)
    assert values[99_000] == pytest.approx(2.0, rel=0.1)
    assert values[0] >= 0.01
    assert values[-1] <= 8.0
    with pytest.raises(WorkloadError, match="must not fall"):
        workload.quantiles([(50, 2.0), (99, 1.0)])


def test_trace(tmp_path: Path) -> None:
    text = "function,duration_s,arrival_s,init_s,more\na,0.5,0.25,0.1,x\n\nb,1,0.25,,x\na,0,3,0.2,x\n"
    plain, zipped = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    plain.write_text("\ufeff" + text)
    zipped.write_bytes(gzip.compress(text.encode()))
    for path in (plain, zipped):
        trace = Trace(path, PlannedFunction, init_ns=7)
        assert list(trace) == [
            (S // 4, S // 2, S // 10, 0),
            (S // 4, S, 7, 1),
            (3 * S, 0, S // 5, 0),
        ]
        assert [function.name for function in trace.functions] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (HEADER, "no invocations"),
        ("arrival_s,length\n1,2\n", "duration_s is missing"),
        ("1,2\n3,4\n", "arrival_s and duration_s is missing"),
        (HEADER + "1,0.1\n0.5,0.1\n", "line 3: arrivals are not in order: 0.5 after 1"),
        (HEADER + "1,-0.1\n", "line 2: a number is negative"),
        (HEADER + "-1,0.1\n", "negative"),
        (HEADER + "nan,0.1\n", "line 2: not a usable number"),
        (HEADER + "1,nan\n", "line 2: not a usable number"),
        (HEADER + "1,inf\n", "line 2: not a usable number"),
        (HEADER + "1,1e300\n", "not a usable number"),
        (HEADER + "1e20,1\n", "larger than"),
        (HEADER + "1\n", "line 2: 1 values, but the header names 2"),
        (HEADER + "one,two\n", "line 2: not a usable number: one,two"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message) as caught:
        list(Trace(path, PlannedFunction))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\x1f\x8b broken", gzip.compress(b"a" * 1000)[:-9], b"\xff\xfe\x00,\n", b"\0"])
def test_files_that_are_no_text(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(WorkloadError):
        list(Trace(path, PlannedFunction))


def _azure(folder: Path, counts: list[str]) -> None:
    with (folder / "x_invocations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["HashOwner", "HashFunction", "Trigger", "2", "1"], ["o", "f", "http", *counts]])
    with (folder / "x_durations.csv").open("w", newline="") as file:
        names = [f"percentile_Average_{percent}" for percent in (0, 50, 100)]
        csv.writer(file).writerows([["HashFunction", "Average", *names], ["f", 210, 100, 200, 400]])
    with (folder / "x_memory.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["HashFunction", "AverageAllocatedMb_pct100"], ["f", 300.5]])


def test_counts_per_minute(tmp_path: Path) -> None:
    _azure(tmp_path, ["3", "1000"])
    found = workload.azure(tmp_path, PlannedFunction)
    assert [each.function.memory_mib for each in found] == [301]
    arrivals = list(workload.per_minute(found, 5, random.Random(1)))
    # The columns are in order of their numbers, not of their places.
    assert [sum(arrival[0] // (60 * S) == minute for arrival in arrivals) for minute in (0, 1)] == [1_000, 3]
    assert arrivals == sorted(arrivals)
    # Between the percentiles the curve is bent to the average.
    assert sum(found[0].durations_ns) / len(found[0].durations_ns) == pytest.approx(0.21 * S, rel=0.01)
    assert sum(arrival[1] for arrival in arrivals) / len(arrivals) == pytest.approx(0.21 * S, rel=0.04)
    assert all(0.1 * S * 0.99 <= arrival[1] <= 0.4 * S for arrival in arrivals)
    assert {arrival[2] for arrival in arrivals} == {5}


def test_bad_counts_per_minute(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="there is no file"):
        workload.azure(tmp_path, PlannedFunction)
    _azure(tmp_path, ["x", "1"])
    with pytest.raises(WorkloadError, match="no usable"):
        workload.azure(tmp_path, PlannedFunction)

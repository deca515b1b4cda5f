"""Sums over time, percentiles, and a timeline that does not grow."""

from __future__ import annotations

import random

import pytest

from lambent.plan.measure import BINS_MAX, Bin, Levels, Sketch, Timeline


def test_levels_integrate_over_time() -> None:
    levels = Levels(100)
    levels.change(110, 1)  # 10 at 0
    levels.change(130, 1)  # 20 at 1
    levels.change(135, -2)  # 5 at 2
    levels.settle(200)  # 65 at 0
    assert levels.time_at == [75, 20, 5]
    assert levels.integral() == 30
    assert levels.mean() == pytest.approx(0.3)
    assert levels.peak == 2
    assert [levels.percentile(p) for p in (0, 50, 75, 76, 95, 96, 100)] == [0, 0, 0, 1, 1, 2, 2]


def test_a_successor_goes_on_at_the_same_level() -> None:
    levels = Levels(0)
    levels.change(0, 3)
    levels.settle(10)
    new = levels.successor()
    new.change(15, -1)
    assert new.level == 2
    assert new.integral() == 15
    assert levels.integral() == 30


def test_sketch_is_within_one_percent() -> None:
    rng = random.Random(7)
    values = sorted(int(rng.lognormvariate(18, 2)) for _ in range(20_000))
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    for percent in (1, 50, 95, 99, 99.9):
        exact = values[max(0, round(len(values) * percent / 100) - 1)]
        assert sketch.percentile(percent) == pytest.approx(exact, rel=0.01)
    assert sketch.percentile(100) == pytest.approx(values[-1], rel=0.01)
    assert sketch.mean() == pytest.approx(sum(values) / len(values))


def test_sketch_of_one_value_is_exact() -> None:
    sketch = Sketch()
    assert sketch.percentile(99) == 0
    assert sketch.mean() == 0
    for _ in range(5):
        sketch.add(123_456_789)
    assert sketch.percentile(50) == sketch.percentile(99) == sketch.high == sketch.mean() == 123_456_789
    zero = Sketch()
    zero.add(0)
    assert zero.percentile(50) == 0
    assert zero.count == 1


def test_timeline_merges_when_it_is_full() -> None:
    timeline = Timeline(0, 10)
    for _ in range(5 * BINS_MAX):
        timeline.close(Bin(requests=1, cold=1, busy_ns=2, environments_ns=3, busy_peak=4))
        assert len(timeline.bins) < BINS_MAX
    # Twice as wide each time: what came later stands for more.
    assert timeline.width_ns > 10
    assert sum(each.requests for each in timeline.bins) == 5 * BINS_MAX
    assert {each.busy_peak for each in timeline.bins} == {4}
    assert timeline.end_ns == (len(timeline.bins) + 1) * timeline.width_ns

"""Target tracking: when alarms are raised, and which capacity follows."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lambent.core.tracking import HIGH_DATAPOINTS, LOW_DATAPOINTS, Alarm, Capacity, Past, Rule, alarm, combine, decide

RULE = Rule(0.7)
NOW, PERIOD = 100_000.0, 60.0
TEN, NOTHING = Capacity(10, 1, 100), Past()
values = st.floats(0, 2, allow_nan=False)
datapoints = st.lists(st.none() | values, max_size=20)
rules = st.builds(
    Rule, st.floats(0.1, 0.9), st.floats(0, 900, allow_nan=False), st.floats(0, 900, allow_nan=False), st.booleans()
)
moments = st.none() | st.floats(NOW - 2_000, NOW, allow_nan=False)
pasts = st.builds(Past, moments, st.integers(0, 500), moments)


@st.composite
def capacities(draw: st.DrawFn) -> Capacity:
    low = draw(st.integers(0, 200))
    return Capacity(draw(st.integers(0, 500)), low, draw(st.integers(low, 500)), draw(moments))


def decided(*points: float | None, capacity: Capacity = TEN, past: Past = NOTHING) -> int | None:
    return decide(RULE, past, capacity, points, NOW, PERIOD)


def test_three_minutes_above_the_target() -> None:
    assert alarm(0.7, [0.71, 0.71]) is Alarm.OK
    assert alarm(0.7, [0.0, 0.71, 0.71, 0.71]) is Alarm.HIGH
    assert alarm(0.7, [0.71, None, 0.71]) is Alarm.OK
    assert alarm(0.7, [0.71, 0.7, 0.71]) is Alarm.OK
    assert decided(0.9, 0.9, 1.0) == 15
    assert decided(0.9, 0.9, 0.77) == 11


def test_fifteen_minutes_below_nine_tenths_of_it() -> None:
    assert alarm(0.7, [0.62] * 15) is Alarm.LOW
    assert alarm(0.7, [0.62] * 14) is Alarm.OK
    assert alarm(0.7, [0.64] * 15) is Alarm.OK
    assert alarm(0.7, [*[0.1] * 7, None, *[0.1] * 7]) is Alarm.OK
    assert decided(*[0.35] * 7, 0.42, *[0.1] * 7) == 6
    assert decide(RULE._replace(scale_in=False), Past(), Capacity(10, 1, 100), [0.1] * 15, NOW, PERIOD) is None


def test_values_are_about_the_capacity_that_there_is() -> None:
    assert decided(1, 1, 1, capacity=Capacity(10, 1, 100, NOW - 29)) is None
    assert decided(1, 1, 1, capacity=Capacity(10, 1, 100, NOW - 30)) == 15
    assert decided(*[0.1] * 15, capacity=Capacity(10, 1, 100, NOW - 14 * PERIOD)) is None
    assert decided(*[0.1] * 15, capacity=Capacity(10, 1, 100, NOW - 15 * PERIOD)) == 2


def test_cooldowns() -> None:
    rule = Rule(0.5, scale_out_cooldown_s=300, scale_in_cooldown_s=600)
    out = Past(scaled_out_s=NOW - 100, scaled_out_from=10)
    # 10 became 16: as much again is not added, but what is more than that.
    assert decide(rule, out, Capacity(16, 1, 100), [0.8] * 3, NOW, PERIOD) is None
    assert decide(rule, out, Capacity(16, 1, 100), [0.9] * 3, NOW, PERIOD) == 18
    assert decide(rule, out, Capacity(16, 1, 100), [0.8] * 3, NOW + 200, PERIOD) == 26
    assert decide(rule, out, Capacity(16, 1, 100), [0.1] * 15, NOW, PERIOD) is None
    into = Past(scaled_in_s=NOW - 500)
    assert decide(rule, into, Capacity(16, 1, 100), [0.1] * 15, NOW, PERIOD) is None
    assert decide(rule, into, Capacity(16, 1, 100), [0.1] * 15, NOW + 100, PERIOD) == 4
    # A scaling out since then has ended the waiting.
    both = Past(NOW - 400, 10, NOW - 500)
    assert decide(rule, both, Capacity(16, 1, 100), [0.1] * 15, NOW, PERIOD) == 4


def test_policies_together() -> None:
    assert combine(10, [(RULE, 12), (RULE, None), (RULE, 11)]) == 12
    assert combine(10, [(RULE, 5), (RULE, None)]) is None
    assert combine(10, [(RULE, 5), (RULE, 7)]) == 7
    assert combine(10, [(RULE, 5), (RULE._replace(scale_in=False), None)]) == 5
    assert combine(10, [(RULE, 5), (RULE, 12)]) == 12
    assert combine(10, []) is None


@given(rules, pasts, capacities(), datapoints)
def test_a_decision_is_a_change_within_the_bounds(
    rule: Rule, past: Past, capacity: Capacity, points: list[float | None]
) -> None:
    wanted = decide(rule, past, capacity, points, NOW, PERIOD)
    if wanted is None:
        return
    state = alarm(rule.target, points)
    assert capacity.minimum <= wanted <= capacity.maximum
    assert state is (Alarm.HIGH if wanted > capacity.current else Alarm.LOW)
    assert wanted != capacity.current
    if state is Alarm.LOW:
        assert rule.scale_in
        assert len(points) >= LOW_DATAPOINTS
    else:
        assert len(points) >= HIGH_DATAPOINTS


@given(st.floats(0.1, 0.9), st.integers(1, 1_000), values, st.integers(0, 100_000))
def test_what_is_reached_holds_the_target(target: float, current: int, value: float, most: int) -> None:
    """With the same load the utilisation is at the target afterwards, or the capacity at its bound; and one less would
    not do."""
    wanted = decide(Rule(target), Past(), Capacity(current, 0, most), [value] * 15, NOW, PERIOD)
    if wanted is None:
        return
    load = current * value
    assert wanted == most or load <= wanted * target + 1e-6
    if wanted > 1:
        assert load > (wanted - 1) * target - 1e-6


@given(st.floats(0.1, 0.9), st.integers(1, 1_000), st.floats(0, 500, allow_nan=False))
def test_a_steady_load_comes_to_rest(target: float, capacity: int, load: float) -> None:
    for _ in range(60):
        value = min(1.0, load / capacity) if capacity else 0.0
        wanted = decide(Rule(target), Past(), Capacity(capacity, 1, 10_000), [value] * 15, NOW, PERIOD)
        if wanted is None:
            break
        capacity = wanted
    else:
        raise AssertionError("goes on for ever")
    needed = load / target
    assert capacity == 1 or math.floor(needed) <= capacity <= max(1.0, needed) / 0.9 + 1

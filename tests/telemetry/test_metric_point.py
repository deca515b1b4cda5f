"""Points: 1 % for every percentile, and merging that loses nothing."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.telemetry.metric_point import Point, bucket_of, decode_buckets, encode_buckets, merged, value_of

#: What CloudWatch takes, down to where it is as good as zero.
SIZES = st.floats(1e-90, 2.0**360)
VALUES = st.just(0.0) | SIZES | SIZES.map(lambda size: -size) | st.floats(0.01, 900_000)


def point_of(values: list[float]) -> Point:
    point = Point()
    for value in values:
        point.add(value)
    return point


@given(VALUES)
def test_every_value_is_known_to_one_percent(value: float) -> None:
    assert math.isclose(value_of(bucket_of(value)), value, rel_tol=0.01000001)


@given(VALUES, VALUES)
def test_buckets_are_in_the_order_of_their_values(one: float, other: float) -> None:
    if one <= other:
        assert bucket_of(one) <= bucket_of(other)


@given(st.lists(VALUES, min_size=1), st.floats(0, 100))
def test_percentiles_are_within_one_percent(values: list[float], percent: float) -> None:
    exact = sorted(values)[int(percent / 100 * (len(values) - 1))]
    found = point_of(values).percentile(percent)
    assert found is not None
    assert math.isclose(found, exact, rel_tol=0.01000001)


def test_percentiles_of_durations() -> None:
    chance = random.Random(1)
    values = [chance.lognormvariate(3, 1.5) for _ in range(20_000)]
    point = point_of(values)
    assert point.buckets is not None
    assert len(point.buckets) < 700
    values.sort()
    for percent in (0, 1, 50, 90, 99, 99.9, 99.99, 100):
        exact = values[int(percent / 100 * (len(values) - 1))]
        assert point.percentile(percent) == pytest.approx(exact, rel=0.01)
    assert point.average == pytest.approx(sum(values) / len(values))


@given(st.lists(st.lists(VALUES)))
def test_merged_parts_are_the_whole(parts: list[list[float]]) -> None:
    whole = point_of([value for part in parts for value in part])
    found = merged(point_of(part) for part in parts)
    assert (found.count, found.minimum, found.maximum) == (whole.count, whole.minimum, whole.maximum)
    assert found.buckets == whole.buckets
    assert found.sum == pytest.approx(whole.sum, rel=1e-9, abs=whole.count * 2.0**360 * 1e-9)


@given(st.lists(st.tuples(VALUES, st.integers(1, 10**6) | st.floats(0.5, 100)), min_size=1))
def test_storage_gives_back_what_it_was_given(values: list[tuple[float, float]]) -> None:
    point = Point()
    for value, count in values:
        point.add(value, count)
    stored = encode_buckets(point)
    again = Point(point.count, point.sum, point.minimum, point.maximum, decode_buckets(stored))
    assert again.buckets == pytest.approx(point.buckets)
    assert (stored is None) == (point.minimum == point.maximum)


def test_a_summary_has_no_percentiles_unless_all_values_are_alike() -> None:
    summary = Point(3, 6, 1, 3)
    assert summary.percentile(50) is None
    assert Point(3, 6, 2, 2).percentile(50) == 2
    whole = point_of([1.0, 5.0])
    whole.merge(summary)
    assert (whole.count, whole.sum, whole.minimum, whole.maximum) == (5, 12, 1, 5)
    assert whole.percentile(50) is None
    whole.add(3.0)
    assert whole.percentile(50) is None
    assert Point().percentile(50) is None

"""Token buckets: against a textbook bucket of fractions, and that asking never changes anything."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from lambent.core.bucket import TokenBucket

S = 1_000_000_000
gaps = st.lists(st.integers(0, 3 * S), max_size=60)


@given(st.integers(0, 50), st.integers(0, 500), st.sampled_from([S, 60 * S]), gaps)
def test_like_the_textbook(capacity: int, per_period: int, period_ns: int, gaps: list[int]) -> None:
    bucket = TokenBucket(0, capacity, per_period, period_ns)
    tokens, now_ns = Fraction(capacity), 0
    for gap_ns in gaps:
        now_ns += gap_ns
        tokens = min(Fraction(capacity), tokens + Fraction(gap_ns * per_period, period_ns))
        assert bucket.available(now_ns) is (tokens >= 1)
        assert bucket.tokens(now_ns) == int(tokens)
        if tokens >= 1:
            bucket.take(now_ns)
            tokens -= 1


@given(st.integers(1, 50), st.integers(1, 500), gaps, gaps)
def test_asking_changes_nothing(capacity: int, rate: int, gaps: list[int], asks: list[int]) -> None:
    asked, quiet = TokenBucket(0, capacity, rate), TokenBucket(0, capacity, rate)
    times = sorted(set(asks))
    now_ns = 0
    for gap_ns in gaps:
        for ask_ns in times:
            if now_ns <= ask_ns <= now_ns + gap_ns:
                asked.available(ask_ns)
        now_ns += gap_ns
        assert asked.tokens(now_ns) == quiet.tokens(now_ns)
        if asked.available(now_ns):
            asked.take(now_ns)
            quiet.take(now_ns)


@given(st.integers(0, 20), st.integers(0, 50), gaps)
def test_never_more_than_burst_and_rate_in_any_window(capacity: int, rate: int, gaps: list[int]) -> None:
    bucket = TokenBucket(0, capacity, rate)
    taken: list[int] = []
    now_ns = 0
    for gap_ns in gaps:
        now_ns += gap_ns
        for _ in range(3):
            if bucket.available(now_ns):
                bucket.take(now_ns)
                taken.append(now_ns)
    for first, begin_ns in enumerate(taken):
        for last in range(first, len(taken)):
            window_ns = taken[last] - begin_ns
            assert last - first + 1 <= capacity + Fraction(rate * window_ns, S)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_resizing_makes_no_tokens(changes: list[tuple[int, bool]]) -> None:
    """However the size goes up and down, at one moment no more can be taken than the largest size."""
    bucket = TokenBucket(0, 10, 5)
    largest, taken = 10, 0
    for capacity, take in changes:
        bucket.resize(0, capacity, 5)
        largest = max(largest, capacity)
        assert 0 <= bucket.tokens(0) <= capacity
        if take and bucket.available(0):
            bucket.take(0)
            taken += 1
    assert taken <= largest


def test_500_a_minute_is_exact() -> None:
    bucket = TokenBucket(0, 1, 500, 60 * S)
    bucket.take(0)
    assert not bucket.available(119_999_999)  # one each 120 ms
    assert bucket.available(120_000_000)
    bucket.take(120_000_000)
    assert not bucket.available(239_999_999)
    assert bucket.available(240_000_000)


def test_an_empty_size_gives_nothing() -> None:
    bucket = TokenBucket(0, 0, 0)
    assert not bucket.available(1_000 * S)
    assert bucket.tokens(2_000 * S) == 0

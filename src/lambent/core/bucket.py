"""A token bucket in whole numbers.

For: the request-rate and scaling-rate limits. It must not look at a clock: every method is told the time,
which never goes back. Outcomes: `available()` says whether a token is there, `take()` takes it and may only
follow a True answer.

Theory of operation: one token is `period_ns` units, and each nanosecond adds `per_period` units, so that
"500 a minute" is exact: nothing is lost to rounding however often one asks, and asking changes nothing that
a later ask would see. The bucket starts full. When its size changes, what was spent stays spent: nobody
gains tokens by changing a limit.
"""

from __future__ import annotations

from lambent.model.limits import NS_PER_S


class TokenBucket:
    """`capacity` tokens at most; `per_period` more each `period_ns`."""

    __slots__ = ("_full", "_level", "_per_period", "_period_ns", "_updated_ns")

    def __init__(self, now_ns: int, capacity: int, per_period: int, period_ns: int = NS_PER_S) -> None:
        assert capacity >= 0
        assert per_period >= 0
        assert period_ns > 0
        self._period_ns = period_ns
        self._per_period = per_period
        self._full = capacity * period_ns
        #: In units; 0 <= _level <= _full.
        self._level = self._full
        self._updated_ns = now_ns

    def available(self, now_ns: int) -> bool:
        """Is there a whole token?"""
        elapsed_ns = now_ns - self._updated_ns
        assert elapsed_ns >= 0
        if elapsed_ns:
            self._updated_ns = now_ns
            level = self._level + elapsed_ns * self._per_period
            self._level = level if level < self._full else self._full
        return self._level >= self._period_ns

    def take(self, now_ns: int) -> None:
        """Take the token that available() has just promised."""
        assert now_ns == self._updated_ns
        assert self._level >= self._period_ns
        self._level -= self._period_ns

    def tokens(self, now_ns: int) -> int:
        """Whole tokens that are there now."""
        self.available(now_ns)
        assert 0 <= self._level <= self._full
        return self._level // self._period_ns

    def ready_ns(self, now_ns: int) -> int:
        """When there will be a token, if nobody takes one before. `per_period` is not 0."""
        missing = self._period_ns - self._level if not self.available(now_ns) else 0
        assert self._full >= self._period_ns
        assert self._per_period > 0
        return now_ns + -(-missing // self._per_period)

    def resize(self, now_ns: int, capacity: int, per_period: int) -> None:
        """A new size and rate from now on; the tokens that were missing are still missing."""
        assert capacity >= 0
        assert per_period >= 0
        self.available(now_ns)
        spent = self._full - self._level
        self._full = capacity * self._period_ns
        self._level = max(0, self._full - spent)
        self._per_period = per_period

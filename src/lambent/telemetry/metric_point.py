"""One point of a metric: count, sum, least, greatest, and the distribution of its values as counts in logarithmic
buckets.

A bucket k > 0 holds the values from G^(k-20000.5) up to G^(k-19999.5), G = 1.01/0.99 (so that 1 lies in the middle of
its bucket); bucket -k holds the same values below zero, bucket 0 zero. So every value is known to 1 %, whatever its
size, points merge without loss, and the buckets' order is that of the values. It is the sketch of Masson, Rim and Lee
(DDSketch, VLDB 2019) as a plain dict: counting costs a logarithm and two dict operations, and whoever needs the
distribution itself (trimmed means, histograms) has it.

A point that came as a summary (count, sum, least, greatest) has no distribution, nor has one that it is merged into.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec

RELATIVE_ERROR: Final = 0.01
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
#: log(value) * BUCKETS_PER_E + BUCKET_OFFSET, cut off, is the bucket of a value above LEAST.
BUCKETS_PER_E: Final = 1 / math.log(_GAMMA)
BUCKET_OFFSET: Final = 20_000.5
#: What is closer to zero counts as zero. CloudWatch takes no value beyond 2^360 (about 1e108).
LEAST: Final = 1e-100

Buckets = dict[int, float]
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder()


def bucket_of(value: float) -> int:
    """The bucket of any finite value of at most 1e150."""
    if value > LEAST:
        return int(math.log(value) * BUCKETS_PER_E + BUCKET_OFFSET)
    if value < -LEAST:
        return -int(math.log(-value) * BUCKETS_PER_E + BUCKET_OFFSET)
    return 0


def value_of(bucket: int) -> float:
    """The value that is within 1 % of all values of the bucket."""
    if bucket == 0:
        return 0.0
    size = math.exp((abs(bucket) - BUCKET_OFFSET) / BUCKETS_PER_E) * (2 * _GAMMA / (_GAMMA + 1))
    return size if bucket > 0 else -size


class Point:
    """What is known of the values of one period. `buckets` is None where the distribution is not known."""

    __slots__ = ("buckets", "count", "maximum", "minimum", "sum")

    def __init__(
        self,
        count: float = 0.0,
        total: float = 0.0,
        minimum: float = math.inf,
        maximum: float = -math.inf,
        buckets: Buckets | None = None,
    ) -> None:
        self.count = count
        self.sum = total
        self.minimum = minimum
        self.maximum = maximum
        # Values that are all alike are their own distribution.
        if buckets is None and (count == 0 or minimum == maximum):
            buckets = {bucket_of(minimum): count} if count else {}
        self.buckets = buckets

    def __repr__(self) -> str:
        return f"<Point of {self.count:g}: sum {self.sum:g}, {self.minimum:g}..{self.maximum:g}>"

    def add(self, value: float, count: float = 1.0) -> None:
        """Count `value` as often as that."""
        self.count += count
        self.sum += value * count
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        buckets = self.buckets
        if buckets is not None:
            bucket = bucket_of(value)
            buckets[bucket] = buckets.get(bucket, 0) + count

    def merge(self, other: Point) -> None:
        """Take in what `other` has counted."""
        if not other.count:
            return
        self.count += other.count
        self.sum += other.sum
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        if self.buckets is None or other.buckets is None:
            self.buckets = None
            return
        buckets = self.buckets
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count

    @property
    def average(self) -> float:
        return self.sum / self.count

    def distribution(self) -> list[tuple[float, float]] | None:
        """Values (to 1 %) in ascending order with their counts."""
        if self.buckets is None:
            return None
        low, high = self.minimum, self.maximum
        return [(min(max(value_of(bucket), low), high), count) for bucket, count in sorted(self.buckets.items())]

    def percentile(self, percent: float) -> float | None:
        """The value below or at which `percent` of the values are, to 1 %: the one at rank percent/100 * (n - 1),
        cut off, in ascending order. None without a distribution."""
        values = self.distribution()
        if not values:
            return None
        if percent <= 0 or percent >= 100:  # these are known exactly
            return self.minimum if percent <= 0 else self.maximum
        rank = percent / 100 * (self.count - 1)
        seen = 0.0
        for value, count in values:
            seen += count
            if seen > rank:
                return value
        return self.maximum


def merged(points: Iterable[Point]) -> Point:
    """A new point of all of them."""
    whole = Point()
    for point in points:
        whole.merge(point)
    return whole


def encode_buckets(point: Point) -> bytes | None:
    """The distribution for storage, a few bytes for each bucket; None where `Point` needs none to find it again,
    and where there is none."""
    if not point.buckets or point.minimum == point.maximum:
        return None
    flat: list[float] = []
    last = 0
    for bucket, count in sorted(point.buckets.items()):
        flat += (bucket - last, int(count) if count == int(count) else count)
        last = bucket
    return _ENCODER.encode(flat)


def decode_buckets(stored: bytes | None) -> Buckets | None:
    """What `encode_buckets` has made."""
    if stored is None:
        return None
    flat: list[Any] = _DECODER.decode(stored)
    buckets: Buckets = {}
    bucket = 0
    for step, count in zip(flat[::2], flat[1::2], strict=True):
        bucket += step
        buckets[bucket] = count
    return buckets

"""What AWS would charge for a plan.

For: comparing settings. It must not pretend to be an invoice: no free tier, no savings plans, no data transfer.
Outcomes: a `Cost` in US dollars.

Rules: a request is charged also when it ends with an error, and not when it is throttled; time is rounded up to 1 ms
for each request and counts from the start of Init (since 2025-08-01); memory is what is configured. Provisioned
concurrency is charged while it is asked for, in use or not (AWS rounds the time up to 5 minutes, a plan does not), and
a request in it at a lower price; so is its Init. SnapStart: the cached template for each version, for 3 hours at
least, and each restore; for Java both are free. A restore is billed here as long as it takes; AWS bills a part of it.
"""

from __future__ import annotations

import dataclasses
from typing import Final

#: The AWS Price List API, us-east-1, read on this day.
PRICES_DATE: Final = "2026-09-19"
PRICES_REGION: Final = "us-east-1"
USD_PER_REQUEST: Final = 0.20 / 1_000_000
#: (up to so many GB-seconds a month, USD for each).
USD_PER_GB_S: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "x86_64": ((6e9, 0.0000166667), (15e9, 0.0000150000), (float("inf"), 0.0000133334)),
    "arm64": ((7.5e9, 0.0000133334), (18.75e9, 0.0000120001), (float("inf"), 0.0000106667)),
}
#: Provisioned concurrency: USD for each GB-second that is kept, and for each that is used.
PROVISIONED_USD_PER_GB_S: Final[dict[str, tuple[float, float]]] = {
    "x86_64": (0.0000041667, 0.0000097222),
    "arm64": (0.0000033334, 0.0000077778),
}
SNAP_START_CACHE_USD_PER_GB_S: Final = 0.0000015046
SNAP_START_CACHE_MIN_S: Final = 3 * 3_600
SNAP_START_RESTORE_USD_PER_GB: Final = 0.0001397998
MONTH_S: Final = 30 * 86_400


@dataclasses.dataclass(frozen=True)
class Usage:
    """What is charged."""

    served: int = 0
    #: On demand, and the part of it that is Init.
    gb_s: float = 0.0
    init_gb_s: float = 0.0
    provisioned_kept_gb_s: float = 0.0
    provisioned_used_gb_s: float = 0.0
    #: Memory of the versions with SnapStart, and of all restores.
    snap_start_gb: float = 0.0
    restored_gb: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """US dollars."""

    requests_usd: float
    duration_usd: float
    #: The part of duration_usd that is Init.
    init_usd: float
    #: If it went on like this for 30 days, with the price steps of large amounts.
    month_usd: float
    provisioned_kept_usd: float = 0.0
    provisioned_used_usd: float = 0.0
    snap_start_cache_usd: float = 0.0
    snap_start_restore_usd: float = 0.0

    @property
    def total_usd(self) -> float:
        return (
            self.requests_usd
            + self.duration_usd
            + self.provisioned_kept_usd
            + self.provisioned_used_usd
            + self.snap_start_cache_usd
            + self.snap_start_restore_usd
        )


def cost(usage: Usage, simulated_s: float, architecture: str = "x86_64") -> Cost:
    """Of the time simulated, and of a month that goes on like it."""
    assert usage.served >= 0
    assert 0 <= usage.init_gb_s <= usage.gb_s
    unit_usd = USD_PER_GB_S[architecture][0][1]
    kept_usd, used_usd = PROVISIONED_USD_PER_GB_S[architecture]
    scale = MONTH_S / simulated_s if simulated_s > 0 else 0.0
    linear = Cost(
        requests_usd=usage.served * USD_PER_REQUEST,
        duration_usd=usage.gb_s * unit_usd,
        init_usd=usage.init_gb_s * unit_usd,
        month_usd=0.0,
        provisioned_kept_usd=usage.provisioned_kept_gb_s * kept_usd,
        provisioned_used_usd=usage.provisioned_used_gb_s * used_usd,
        snap_start_cache_usd=usage.snap_start_gb
        * max(simulated_s, SNAP_START_CACHE_MIN_S)
        * SNAP_START_CACHE_USD_PER_GB_S,
        snap_start_restore_usd=usage.restored_gb * SNAP_START_RESTORE_USD_PER_GB,
    )
    month_usd = (
        (linear.total_usd - linear.duration_usd - linear.snap_start_cache_usd) * scale
        + duration_usd(usage.gb_s * scale, architecture)
        + usage.snap_start_gb * MONTH_S * SNAP_START_CACHE_USD_PER_GB_S
    )
    return dataclasses.replace(linear, month_usd=month_usd)


def duration_usd(gb_s: float, architecture: str = "x86_64") -> float:
    """One month's GB-seconds on demand, each step at its own price."""
    total, before = 0.0, 0.0
    for up_to, usd in USD_PER_GB_S[architecture]:
        total += max(0.0, min(gb_s, up_to) - before) * usd
        before = up_to
    return total

"""What AWS would charge for a plan.

For: comparing settings. It must not pretend to be an invoice: no free tier (unless asked for), no savings plans, no
data transfer, no provisioned concurrency or SnapStart yet. Outcomes: a `Cost` in US dollars.

Rules: a request is charged also when it ends with an error, and not when it is throttled; time is rounded up to 1 ms
for each request and counts from the start of Init (since 2025-08-01); memory is what is configured.
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
MONTH_S: Final = 30 * 86_400


@dataclasses.dataclass(frozen=True)
class Cost:
    """US dollars."""

    requests_usd: float
    duration_usd: float
    #: The part of duration_usd that is Init.
    init_usd: float
    #: If it went on like this for 30 days, with the price steps of large amounts.
    month_usd: float

    @property
    def total_usd(self) -> float:
        return self.requests_usd + self.duration_usd


def cost(served: int, gb_s: float, init_gb_s: float, simulated_s: float, architecture: str = "x86_64") -> Cost:
    """`served` requests and their billed time, of which init_gb_s is Init."""
    assert served >= 0
    assert 0 <= init_gb_s <= gb_s
    unit_usd = USD_PER_GB_S[architecture][0][1]
    scale = MONTH_S / simulated_s if simulated_s > 0 else 0.0
    return Cost(
        requests_usd=served * USD_PER_REQUEST,
        duration_usd=gb_s * unit_usd,
        init_usd=init_gb_s * unit_usd,
        month_usd=served * scale * USD_PER_REQUEST + duration_usd(gb_s * scale, architecture),
    )


def duration_usd(gb_s: float, architecture: str = "x86_64") -> float:
    """One month's GB-seconds, each step at its own price."""
    total, before = 0.0, 0.0
    for up_to, usd in USD_PER_GB_S[architecture]:
        total += max(0.0, min(gb_s, up_to) - before) * usd
        before = up_to
    return total

"""Who may run: accounts, functions, versions, and the pools of concurrency that their requests count in.

For: the numbers behind every 429. It must not know environments or workers beyond holding a version's idle
ones. Outcomes: `Scope.refusal()` is a reason to throttle or None; counts never go below 0.

Theory of operation. Each request in flight counts in exactly one *scope*: the reserved pool of its function
if it has one, otherwise the unreserved pool of its account. A function points to its scope, so that the
warm path asks one object. When a reservation comes, goes or changes, the requests in flight move with the
function: what is in flight is always counted where the function counts now. A removed function's
reservation returns to the account at once; its requests that are still running count in the unreserved pool
until they end (they do use the account's concurrency).

Provisioned concurrency is taken out of the scope of its function: a request that runs in a provisioned
environment counts in that version's pool (provisioned.py) and not in the scope, and the scope's limit is less
by what the pools *claim*. "With reserved set, PC comes out of the reserved pool"; without, out of the account's
unreserved one. A reservation is a ceiling all the same: over all, a function has no more in flight than it has
reserved.

A limit that is lowered below what is in flight cuts nothing off: it only refuses until the count has
fallen. So the total of an account can stand above its limit for a while after a reservation was made, never
by admission within a pool.

Request rate: 10 requests a second for each unit of a scope's limit, as a bucket that holds one second's
worth (AWS names no window). Asynchronous requests neither ask it nor use it up. AWS's other rate, "10,000
requests a second more every 10 s" beside 1,000 environments, is not kept: it binds only where the account's
limit is above 1,000 and requests are shorter than 100 ms.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TYPE_CHECKING

from lambent.core.bucket import TokenBucket
from lambent.core.environment import NEVER_NS
from lambent.model.invocation import ThrottleReason
from lambent.model.limits import (
    CLASSIC_ENVIRONMENTS_PER_MIN,
    NS_PER_S,
    PROVISIONED_BURST_ENVIRONMENTS,
    PROVISIONED_ENVIRONMENTS_PER_MIN,
    REQUEST_RATE_PER_CONCURRENCY,
    RESTORE_TIMEOUT_S,
    SCALING_BURST_ENVIRONMENTS,
    SCALING_ENVIRONMENTS_PER_S,
)

if TYPE_CHECKING:
    from lambent.core.environment import Environment
    from lambent.core.provisioned import Pool
    from lambent.core.sharing import Rooms


class ScalingProfile(enum.StrEnum):
    """How fast new environments may be started."""

    #: 1,000 every 10 s for each function.
    CURRENT = "current"
    #: Until November 2023: a burst for the whole region of an account, then 500 a minute.
    CLASSIC = "classic"


class Scope:
    """A pool of concurrency with its request rate."""

    __slots__ = ("concurrency_reason", "in_flight", "limit", "rate", "rate_reason")

    def __init__(
        self, now_ns: int, limit: int, concurrency_reason: ThrottleReason, rate_reason: ThrottleReason
    ) -> None:
        assert limit >= 0
        assert concurrency_reason is not rate_reason
        self.in_flight = 0
        self.limit = limit
        rate = limit * REQUEST_RATE_PER_CONCURRENCY
        self.rate = TokenBucket(now_ns, rate, rate)
        self.concurrency_reason = concurrency_reason
        self.rate_reason = rate_reason

    def refusal(self, now_ns: int, asynchronous: bool) -> ThrottleReason | None:
        """Why one more request may not run now. Uses nothing up."""
        assert self.in_flight >= 0
        if self.in_flight >= self.limit:
            return self.concurrency_reason
        if not asynchronous and not self.rate.available(now_ns):
            return self.rate_reason
        return None

    def resize(self, now_ns: int, limit: int) -> None:
        assert limit >= 0
        self.limit = limit
        rate = limit * REQUEST_RATE_PER_CONCURRENCY
        self.rate.resize(now_ns, rate, rate)


class Account:
    """An account in one region."""

    __slots__ = (
        "concurrency_max",
        "functions",
        "id",
        "provisioned_in_flight",
        "provisioned_sum",
        "reserved_sum",
        "scaling",
        "unreserved",
    )

    def __init__(self, identity: int, now_ns: int, concurrency_max: int, classic_burst: int) -> None:
        assert concurrency_max >= 0
        assert classic_burst >= 0
        self.id = identity
        self.concurrency_max = concurrency_max
        #: Over the functions that are not removed.
        self.reserved_sum = 0
        #: What provisioned concurrency claims of the unreserved pool: that of functions without a reservation.
        self.provisioned_sum = 0
        #: Requests in provisioned environments, of all functions.
        self.provisioned_in_flight = 0
        self.unreserved = Scope(now_ns, concurrency_max, ThrottleReason.CONCURRENCY, ThrottleReason.RATE)
        #: The classic profile's bucket.
        self.scaling = TokenBucket(now_ns, classic_burst, CLASSIC_ENVIRONMENTS_PER_MIN, 60 * NS_PER_S)
        self.functions: dict[int, Function] = {}

    def resize(self, now_ns: int, concurrency_max: int, classic_burst: int) -> None:
        assert concurrency_max >= 0
        assert classic_burst >= 0
        self.concurrency_max = concurrency_max
        self.scaling.resize(now_ns, classic_burst, CLASSIC_ENVIRONMENTS_PER_MIN)
        self._resize_unreserved(now_ns)

    def claim(self, now_ns: int, reserved: int, provisioned: int) -> None:
        """So much more (or less) is taken out of the unreserved pool."""
        self.reserved_sum += reserved
        self.provisioned_sum += provisioned
        assert self.reserved_sum >= 0
        assert self.provisioned_sum >= 0
        self._resize_unreserved(now_ns)

    def claimed(self) -> int:
        """ClaimedAccountConcurrency: unreserved in use, all reserved, and what is provisioned without reservation."""
        assert self.unreserved.in_flight >= 0
        return self.unreserved.in_flight + self.reserved_sum + self.provisioned_sum

    def _resize_unreserved(self, now_ns: int) -> None:
        # The control plane refuses reservations beyond the limit; but the limit may be lowered under them.
        limit = max(0, self.concurrency_max - self.reserved_sum - self.provisioned_sum)
        assert limit <= self.concurrency_max
        if limit != self.unreserved.limit:
            self.unreserved.resize(now_ns, limit)


class Function:
    """A function: the unit of reserved concurrency and of today's scaling rate."""

    __slots__ = (
        "account",
        "id",
        "in_flight",
        "provisioned",
        "provisioned_in_flight",
        "provisioning",
        "reserved",
        "scaling",
        "scope",
        "throttles",
        "versions",
    )

    def __init__(self, identity: int, account: Account, profile: ScalingProfile, now_ns: int) -> None:
        assert identity not in account.functions
        self.id = identity
        self.account = account
        self.reserved: int | None = None
        #: On demand, of all its versions; all of them count in `scope` too.
        self.in_flight = 0
        #: In provisioned environments; these count in their pools.
        self.provisioned_in_flight = 0
        #: What its pools claim.
        self.provisioned = 0
        #: How fast provisioned environments may come up.
        self.provisioning = TokenBucket(
            now_ns, PROVISIONED_BURST_ENVIRONMENTS, PROVISIONED_ENVIRONMENTS_PER_MIN, 60 * NS_PER_S
        )
        #: How often its requests were refused, since the function came.
        self.throttles: dict[ThrottleReason, int] = {}
        self.scope = account.unreserved
        self.scaling = (
            account.scaling
            if profile is ScalingProfile.CLASSIC
            else TokenBucket(now_ns, SCALING_BURST_ENVIRONMENTS, SCALING_ENVIRONMENTS_PER_S)
        )
        self.versions: dict[int, Version] = {}
        assert self.scope.in_flight >= 0

    def set_reserved(self, now_ns: int, reserved: int | None) -> None:
        """Change the reservation; requests in flight move to the pool where the function counts now."""
        before = self.reserved
        if reserved == before:
            return
        assert reserved is None or reserved >= 0
        assert self.scope.in_flight >= self.in_flight
        on_demand = max(0, (reserved or 0) - self.provisioned)
        if before is not None and reserved is not None:
            self.scope.resize(now_ns, on_demand)
        else:
            self.scope.in_flight -= self.in_flight
            if reserved is None:
                assert self.scope.in_flight == 0
                self.scope = self.account.unreserved
            else:
                self.scope = Scope(
                    now_ns,
                    on_demand,
                    ThrottleReason.RESERVED_CONCURRENCY,
                    ThrottleReason.RESERVED_RATE,
                )
            self.scope.in_flight += self.in_flight
        self.reserved = reserved
        provisioned = (self.provisioned if reserved is None else 0) - (self.provisioned if before is None else 0)
        self.account.claim(now_ns, (reserved or 0) - (before or 0), provisioned)
        assert self.account.unreserved.in_flight >= 0

    def claim(self, now_ns: int, difference: int) -> None:
        """Its pools claim so much more (or less) of its scope."""
        self.provisioned += difference
        assert self.provisioned >= 0
        if self.reserved is None:
            self.account.claim(now_ns, 0, difference)
        else:
            self.scope.resize(now_ns, max(0, self.reserved - self.provisioned))

    def full(self) -> bool:
        """Has it as much in flight as is reserved for it, provisioned included? (The scope asks for the rest.)"""
        assert self.in_flight >= 0
        assert self.provisioned_in_flight >= 0
        return self.reserved is not None and self.in_flight + self.provisioned_in_flight >= self.reserved

    def release(self) -> None:
        """A request of this function has ended."""
        assert self.in_flight > 0
        scope = self.scope
        assert scope.in_flight >= self.in_flight
        self.in_flight -= 1
        scope.in_flight -= 1


class Version:
    """What requests name and environments run. Immutable but for being retired."""

    __slots__ = (
        "cold_starts",
        "concurrency",
        "debugged",
        "function",
        "hint_ns",
        "id",
        "idle",
        "init_timeout_ns",
        "memory_mib",
        "plain",
        "pool",
        "provisioned_invocations",
        "resetting",
        "restore_timeout_ns",
        "retired",
        "rooms",
        "snap_start",
        "spillovers",
        "tenancy",
        "tenants",
        "throttles",
        "timeout_ns",
    )

    def __init__(
        self,
        identity: int,
        function: Function,
        memory_mib: int,
        timeout_ns: int,
        init_timeout_ns: int,
        snap_start: bool = False,
        restore_timeout_ns: int = RESTORE_TIMEOUT_S * NS_PER_S,
        tenancy: bool = False,
        concurrency: int = 1,
    ) -> None:
        assert memory_mib > 0
        assert timeout_ns > 0
        assert init_timeout_ns > 0
        assert restore_timeout_ns > 0
        assert concurrency >= 1
        self.id = identity
        self.function = function
        self.memory_mib = memory_mib
        self.timeout_ns = timeout_ns
        self.init_timeout_ns = init_timeout_ns
        self.snap_start = snap_start
        self.restore_timeout_ns = restore_timeout_ns
        self.tenancy = tenancy
        #: Requests at once in one environment.
        self.concurrency = concurrency
        #: None of the features below: what the warm path asks first. See settle().
        self.plain = True
        self.retired = False
        #: Its provisioned environments, none of which is in `idle` or `resetting`.
        self.pool: Pool | None = None
        #: The environment that a debugger may stop.
        self.debugged: Environment | None = None
        #: With tenancy, the same environments as in `idle`, for each tenant that has some.
        self.tenants: dict[int, OrderedDict[int, Environment]] = {}
        #: With several requests to an environment: those that have room, for each tenant (0: there are none).
        self.rooms: dict[int, Rooms] = {}
        #: Counted since the version came.
        self.cold_starts = 0
        self.provisioned_invocations = 0
        self.spillovers = 0
        self.throttles: dict[ThrottleReason, int] = {}
        #: Environments in IDLE, in the order in which they became so: the last is the most recently used.
        self.idle: OrderedDict[int, Environment] = OrderedDict()
        #: Environments in RESETTING for which no request waits yet, in the order in which their reset began.
        self.resetting: OrderedDict[int, Environment] = OrderedDict()
        #: Time of its entry in the timer heap: not later than the moment when its oldest idle one has been
        #: idle for too long. NEVER_NS: no entry.
        self.hint_ns = NEVER_NS
        self.settle()

    def settle(self) -> None:
        """Whether it is plain, after `pool` or `debugged` has changed."""
        special = self.tenancy or self.concurrency > 1 or self.pool is not None or self.debugged is not None
        self.plain = not special

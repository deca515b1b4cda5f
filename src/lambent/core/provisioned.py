"""Provisioned concurrency: what was asked for, what there is, and what it claims.

For: the numbers; provisioner.py starts and stops environments to make them true. It must not command anything.
Outcomes: `Pool.usable()` says whether a request may run in the pool; claims always reach the function's scope.

Theory of operation. An *allocation* is one configuration of the API, for a version or an alias; it has a *pool* for
each version that the alias points to or, until the new ones are complete, has pointed to. A pool is one version's
provisioned environments. Of these, `starting` have not finished Init; `allocated` have, and are idle, busy or being
reset. Three numbers say how many there should be:

- `want`: what the driver asks for; environments are started up to it.
- `goal`: what is kept. Above `want` from a move or a shift of an alias until the other pools are complete; what
  stands above `goal` is stopped, busy ones after their request.
- `online`: how many requests at once the pool serves. "You can't access any of those environments until Lambda
  completely finishes allocating them": it rises to `want` only when the whole allocation is complete, and then
  follows deaths and replacements; so an alias's old environments hand over to the new ones in one moment. An
  allocation that can not be completed, for Init fails or no worker has room, serves with what it has.

A pool *claims* what is online, taken from its function's scope, or what is still in flight when that is more. So what
is admitted on demand and what runs provisioned never add up to more than the limit, except that a claim that rises
cuts off no request that is already running on demand.

A pool serves 10 synchronous requests a second for each one online; those beyond spill over to on-demand
environments, as do those that find all of them busy. Nobody waits for an environment of a pool but for a reset.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from lambent.core.bucket import TokenBucket
from lambent.core.environment import NEVER_NS
from lambent.core.events import ProvisionedReason, ProvisionedState
from lambent.model.limits import (
    LONG_INIT_TIMEOUT_MAX_S,
    LONG_INIT_TIMEOUT_MIN_S,
    NS_PER_S,
    REQUEST_RATE_PER_CONCURRENCY,
)

if TYPE_CHECKING:
    from lambent.core.admission import Version
    from lambent.core.environment import Environment


class Allocation:
    """One provisioned concurrency configuration."""

    __slots__ = ("complete", "id", "pools", "told")

    def __init__(self, identity: int) -> None:
        self.id = identity
        #: By version, in the order in which they were named; never empty while the scheduler knows it.
        self.pools: dict[int, Pool] = {}
        #: All that was asked for last has been there once.
        self.complete = False
        #: What the driver was told last: allocated, available, state, reason.
        self.told: tuple[int, int, ProvisionedState, ProvisionedReason | None] = (
            0,
            0,
            ProvisionedState.IN_PROGRESS,
            None,
        )

    def numbers(self, failures_max: int) -> tuple[int, int, ProvisionedState, ProvisionedReason | None]:
        """What there is to tell."""
        wanted = [pool for pool in self.pools.values() if pool.want]
        allocated = sum(min(pool.allocated, pool.want) for pool in wanted)
        available = sum(min(pool.online, pool.want) for pool in wanted)
        assert available <= allocated
        assert not self.complete or self.pools
        short = [pool for pool in wanted if pool.allocated < pool.want]
        reason = next((pool.reason for pool in short if pool.reason is not None), None)
        if any(pool.failures >= failures_max for pool in short):
            state = ProvisionedState.FAILED
        else:
            state = ProvisionedState.READY if self.complete else ProvisionedState.IN_PROGRESS
        return allocated, available, state, reason


class Pool:
    """The provisioned environments of one version."""

    __slots__ = (
        "allocated",
        "allocation",
        "claimed",
        "failures",
        "goal",
        "hint_ns",
        "idle",
        "in_flight",
        "no_room",
        "online",
        "rate",
        "reason",
        "resetting",
        "retry_ns",
        "starting",
        "version",
        "want",
    )

    def __init__(self, now_ns: int, allocation: Allocation, version: Version) -> None:
        assert version.pool is None
        assert not version.tenancy
        assert version.concurrency == 1
        self.allocation = allocation
        self.version = version
        self.want = 0
        self.goal = 0
        self.online = 0
        #: What is taken out of the function's scope: max(online, in_flight).
        self.claimed = 0
        #: Requests bound to its environments.
        self.in_flight = 0
        #: Environments before the end of their Init, oldest first.
        self.starting: dict[int, Environment] = {}
        #: Number of those after it.
        self.allocated = 0
        #: Of those, the ones in IDLE, the most recently used last, and the ones in RESETTING that nobody waits for.
        self.idle: OrderedDict[int, Environment] = OrderedDict()
        self.resetting: OrderedDict[int, Environment] = OrderedDict()
        self.rate = TokenBucket(now_ns, 0, 0)
        #: Starts that failed one after the other; those of one moment are counted once.
        self.failures = 0
        self.reason: ProvisionedReason | None = None
        self.no_room = False
        #: Nothing is started before.
        self.retry_ns = 0
        #: Time of its entry in the timer heap.
        self.hint_ns = NEVER_NS

    @property
    def living(self) -> int:
        return len(self.starting) + self.allocated

    def init_timeout_ns(self) -> int:
        """The limit of Init for provisioned environments: max(130 s, the function's timeout), at most 15 min."""
        timeout_ns = max(self.version.timeout_ns, LONG_INIT_TIMEOUT_MIN_S * NS_PER_S)
        assert timeout_ns > 0
        return min(timeout_ns, LONG_INIT_TIMEOUT_MAX_S * NS_PER_S)

    def usable(self, now_ns: int, asynchronous: bool) -> bool:
        """May one more request run here? Then there is an idle environment, or one that is being reset."""
        if self.in_flight >= self.online or self.version.function.full():
            return False
        assert self.idle or self.resetting
        return asynchronous or self.rate.available(now_ns)

    def take(self, now_ns: int, asynchronous: bool) -> None:
        """A request runs here."""
        assert self.in_flight < self.online
        assert self.claimed >= self.online
        self.in_flight += 1
        function = self.version.function
        function.provisioned_in_flight += 1
        function.account.provisioned_in_flight += 1
        if not asynchronous:
            self.rate.take(now_ns)

    def release(self, now_ns: int) -> None:
        """A request that counted here has ended, or counts elsewhere now."""
        assert self.in_flight > 0
        self.in_flight -= 1
        function = self.version.function
        function.provisioned_in_flight -= 1
        function.account.provisioned_in_flight -= 1
        assert function.provisioned_in_flight >= 0
        if self.claimed > self.online:
            self.set_online(now_ns, self.online)

    def set_online(self, now_ns: int, online: int) -> None:
        """Serve so many requests at once, and claim as many."""
        assert online >= 0
        assert self.in_flight >= 0
        if online != self.online:
            self.online = online
            rate = online * REQUEST_RATE_PER_CONCURRENCY
            self.rate.resize(now_ns, rate, rate)
        claimed = max(online, self.in_flight)
        difference, self.claimed = claimed - self.claimed, claimed
        if difference:
            self.version.function.claim(now_ns, difference)

    def next_online(self, served: bool) -> int:
        """What `online` should be; `served`: the allocation is complete, or can not be completed."""
        online = min(self.allocated, self.want) if served else min(self.allocated, self.goal, self.online)
        assert 0 <= online <= self.goal
        assert served or online <= self.online
        return online

    def left(self, environment: Environment) -> None:
        """It was told to stop, or died without."""
        assert environment.pool is self
        if self.starting.pop(environment.id, None) is None:
            self.allocated -= 1
        assert self.allocated >= 0
        assert environment.id not in self.idle

    def came_up(self, environment: Environment) -> None:
        """Its Init is done."""
        del self.starting[environment.id]
        assert environment.id not in self.idle
        self.allocated += 1
        self.failures = 0
        self.reason = ProvisionedReason.NO_ROOM if self.no_room else None
        assert environment.pool is self

"""The moves that keep provisioned concurrency at its count.

For: scheduler.py, which is built on this class. It must not decide which requests run there: scheduler.py asks the
pool. Outcomes: as in engine.py, and a ProvisionedStatus whenever what an allocation has to tell has changed.

Theory of operation. provisioned.py says what the numbers mean. Whatever moves them (a Set, an environment that comes
up, fails, dies or is stopped, a timer) marks the allocation as dirty; when the fact has been dealt with, `_settle`
brings each dirty allocation to rest: stop what is above the goal, start what is missing, let go of what is no longer
wanted once the rest is complete, then set what is online everywhere (falling before rising), then tell.

*Starts* are paced three ways: AWS's rate (6,000 a minute for each function), so many at once that one host can bear
(`provisioned_starting_max` for each pool), and a back-off after a failure: 1 s, doubled up to 60 s. Failures between
two starts count once, any success sets the count to 0. After `FAILURES_MAX` in a row an allocation that has never
been complete gives up until it is set again; one that was complete says FAILED too but goes on trying, because
Lambda keeps the count. Environments lost with their worker or after their first request are no failures.

*Room* is made by idle on-demand environments, never by provisioned ones. Without any, the versions that an alias has
left give theirs up; then it is tried again each second, and whenever a worker joins.
"""

from __future__ import annotations

from typing import Final

from lambent.core.admission import ScalingProfile
from lambent.core.engine import Commands
from lambent.core.environment import Environment, EnvironmentState
from lambent.core.events import Complete, ProvisionedReason, ProvisionedSet, ProvisionedStatus, StopReason
from lambent.core.provisioned import Allocation, Pool
from lambent.core.sharer import Sharer
from lambent.model.invocation import InitializationType, Outcome
from lambent.model.limits import NS_PER_S

#: Environments of one pool that may be before the end of their Init at the same time. Lambent's own: AWS has many
#: hosts for them.
PROVISIONED_STARTING_MAX: Final = 8
#: The rest is Lambent's own as well; AWS names none of them.
FAILURES_MAX: Final = 3
BACK_OFF_NS: Final = NS_PER_S
BACK_OFF_MAX_NS: Final = 60 * NS_PER_S
ROOM_RETRY_NS: Final = NS_PER_S

_BUSY = EnvironmentState.BUSY


class Provisioner(Sharer):
    """See the head of this module."""

    __slots__ = ("_allocations", "_provisioned_starting_max")

    def __init__(
        self,
        profile: ScalingProfile,
        idle_reclaim_ns: int,
        start_limit_ns: int,
        reset_limit_ns: int,
        shutdown_limit_ns: int,
        attempts_max: int,
        provisioned_starting_max: int,
    ) -> None:
        assert provisioned_starting_max >= 1
        super().__init__(profile, idle_reclaim_ns, start_limit_ns, reset_limit_ns, shutdown_limit_ns, attempts_max)
        self._provisioned_starting_max = provisioned_starting_max
        #: Those that have pools.
        self._allocations: dict[int, Allocation] = {}

    # --- requests -----------------------------------------------------------------------------------

    def _dispatch_provisioned(self, now_ns: int, pool: Pool, request: int, attempt: int, commands: Commands) -> None:
        """To the idle one that was used last. The caller counts."""
        _, environment = pool.idle.popitem()
        assert environment.pool is pool
        assert environment.request is None
        pool.version.provisioned_invocations += 1
        self._dispatch(now_ns, environment, request, attempt, commands)

    def _await_reset_provisioned(self, pool: Pool, request: int) -> None:
        environment = pool.resetting[next(reversed(pool.resetting))]
        assert environment.pool is pool
        assert not pool.idle, "an idle one would have been taken"
        pool.version.provisioned_invocations += 1
        self._bind_reset(pool.resetting, environment, request)

    def _place_again(self, now_ns: int, lost: Environment, request: int, attempt: int, commands: Commands) -> None:
        pool = lost.pool
        if pool is None:
            super()._place_again(now_ns, lost, request, attempt, commands)
            return
        assert attempt >= 1
        assert lost.request is None
        again = attempt < self._attempts_max and self._wanted(lost.version)
        if again and pool.idle:
            self._dispatch_provisioned(now_ns, pool, request, attempt + 1, commands)
            return
        pool.release(now_ns)
        function = lost.version.function
        scope = function.scope
        if again and scope.in_flight < scope.limit:
            # It counts as an on-demand request from now on.
            function.in_flight += 1
            scope.in_flight += 1
            lost.spilled = True
            super()._place_again(now_ns, lost, request, attempt, commands)
            return
        commands.append(Complete(request, lost.id, Outcome.ENVIRONMENT_LOST))

    def _expire(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        pool = environment.pool
        if pool is not None and environment.id in pool.starting:
            assert environment.request is None
            self._start_failed(now_ns, pool, ProvisionedReason.INIT_FAILED)
        elif pool is not None and environment.state is _BUSY and pool.living > pool.goal:
            self._complete(environment, Outcome.TIMEOUT, commands)
            wanted = self._wanted(environment.version)
            reason = StopReason.UNPROVISIONED if wanted else self._unwanted_reason()
            self._stop(now_ns, environment, reason, commands)
            return
        super()._expire(now_ns, environment, commands)

    # --- facts --------------------------------------------------------------------------------------

    def _provisioned_set(self, now_ns: int, event: ProvisionedSet, commands: Commands) -> None:
        if self._draining:
            return
        allocation = self._allocations.get(event.allocation) or Allocation(event.allocation)
        wants: dict[int, int] = {}
        for identity, count in event.versions:
            assert count >= 0
            version = self._versions.get(identity)
            if version is None or version.snap_start or version.tenancy or version.concurrency > 1 or not count:
                continue
            wants[identity] = count
            if version.pool is None:
                version.pool = allocation.pools[identity] = Pool(now_ns, allocation, version)
                version.settle()
            elif version.pool.allocation is not allocation:
                self._take_over(allocation, version.pool)
        functions = {pool.version.function.id for pool in allocation.pools.values()}
        assert len(functions) <= 1, "an allocation belongs to one function"
        if not wants:
            for pool in list(allocation.pools.values()):
                self._drop_pool(now_ns, pool, commands)
            return
        self._allocations[allocation.id] = allocation
        for pool in allocation.pools.values():
            pool.want = wants.get(pool.version.id, 0)
            pool.goal = max(pool.want, min(pool.goal, pool.allocated))
            pool.failures = pool.retry_ns = 0
            pool.no_room = False
            pool.reason = None
        allocation.complete = False
        self._dirty[allocation] = None

    def _take_over(self, allocation: Allocation, pool: Pool) -> None:
        """The pool of a version that another allocation has named before, with all that is in it."""
        before = pool.allocation
        assert before is not allocation
        del before.pools[pool.version.id]
        self._touch(before)
        pool.allocation = allocation
        allocation.pools[pool.version.id] = pool
        assert pool.version.pool is pool

    def _drop_pool(self, now_ns: int, pool: Pool, commands: Commands) -> None:
        """Nothing is wanted of it; its busy environments stop after their request."""
        version, allocation = pool.version, pool.allocation
        assert version.pool is pool
        assert not version.plain
        version.pool = None
        version.settle()
        del allocation.pools[version.id]
        pool.want = pool.goal = 0
        self._trim(now_ns, pool, commands)
        pool.set_online(now_ns, 0)
        assert not pool.idle
        self._touch(allocation)

    def _touch(self, allocation: Allocation) -> None:
        """Something was taken from it, maybe the last."""
        if allocation.pools:
            self._dirty[allocation] = None
        else:
            self._dirty.pop(allocation, None)
            self._allocations.pop(allocation.id, None)
        assert allocation.pools or allocation.id not in self._allocations

    def _drop_allocations(self, now_ns: int, commands: Commands) -> None:
        for allocation in list(self._allocations.values()):
            for pool in list(allocation.pools.values()):
                self._drop_pool(now_ns, pool, commands)
        assert not self._allocations

    def _came_up(self, pool: Pool, environment: Environment) -> None:
        pool.came_up(environment)
        self._dirty[pool.allocation] = None

    def _start_failed(self, now_ns: int, pool: Pool, reason: ProvisionedReason) -> None:
        """An environment was lost before its first request. The caller stops it, or has it dead."""
        assert reason is not ProvisionedReason.NO_ROOM
        self._dirty[pool.allocation] = None
        if pool.failures and now_ns < pool.retry_ns:
            return
        pool.failures += 1
        pool.reason = reason
        pool.no_room = False
        pool.retry_ns = now_ns + min(BACK_OFF_NS << min(pool.failures - 1, 10), BACK_OFF_MAX_NS)
        assert pool.retry_ns > now_ns

    def _try_again(self) -> None:
        """There may be room now."""
        for allocation in self._allocations.values():
            for pool in allocation.pools.values():
                if pool.no_room:
                    pool.retry_ns = 0
                    self._dirty[allocation] = None

    # --- bringing it to rest ------------------------------------------------------------------------

    def _settle(self, now_ns: int, commands: Commands) -> None:
        settled: dict[Allocation, None] = {}
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for allocation in dirty:
                self._adjust(now_ns, allocation, commands)
            settled |= dirty
        changes = []
        for allocation in settled:
            served = self._served(allocation)
            changes += [(pool, pool.next_online(served)) for pool in allocation.pools.values()]
        # What is given back comes first, so that no scope is smaller in between than at the end.
        changes.sort(key=lambda change: change[1] > change[0].online)
        for pool, online in changes:
            pool.set_online(now_ns, online)
        for allocation in settled:
            if not allocation.pools:
                continue
            numbers = allocation.numbers(FAILURES_MAX)
            if numbers != allocation.told:
                allocation.told = numbers
                commands.append(ProvisionedStatus(allocation.id, *numbers))
        assert not self._dirty
        assert not (self._draining and self._allocations)

    def _adjust(self, now_ns: int, allocation: Allocation, commands: Commands) -> None:
        for pool in allocation.pools.values():
            self._trim(now_ns, pool, commands)
        for pool in list(allocation.pools.values()):
            self._fill(now_ns, pool, commands)
        if all(pool.allocated >= pool.want for pool in allocation.pools.values()):
            allocation.complete = True
        if self._served(allocation):
            self._let_go(now_ns, allocation, commands)

    def _gave_up(self, pool: Pool) -> bool:
        return pool.failures >= FAILURES_MAX and not pool.allocation.complete

    def _served(self, allocation: Allocation) -> bool:
        """Complete, or as good as it can be."""
        return allocation.complete or all(
            pool.allocated >= pool.want or self._gave_up(pool) or (pool.no_room and not pool.starting)
            for pool in allocation.pools.values()
        )

    def _let_go(self, now_ns: int, allocation: Allocation, commands: Commands) -> None:
        """Stop what was only kept until the rest was complete."""
        for pool in list(allocation.pools.values()):
            if pool.want == 0:
                self._drop_pool(now_ns, pool, commands)
            elif pool.goal > pool.want:
                pool.goal = pool.want
                self._trim(now_ns, pool, commands)
            assert pool.goal == pool.want
            assert pool.living <= pool.want or not pool.idle

    def _trim(self, now_ns: int, pool: Pool, commands: Commands) -> None:
        """Stop what is above the goal and has no request: youngest starts first, then the least recently used."""
        surplus = pool.living - pool.goal
        if surplus <= 0:
            return
        free = [*reversed(pool.starting.values()), *pool.idle.values(), *pool.resetting.values()]
        assert len(free) + pool.in_flight == pool.living
        reason = StopReason.UNPROVISIONED if self._wanted(pool.version) else self._unwanted_reason()
        for environment in free[:surplus]:
            self._stop(now_ns, environment, reason, commands)

    def _fill(self, now_ns: int, pool: Pool, commands: Commands) -> None:
        """Start what is missing, as far as it may be started now, and have a timer for the rest."""
        if self._gave_up(pool):
            for environment in list(pool.starting.values()):
                self._stop(now_ns, environment, StopReason.FAILED, commands)
            return
        while pool.living < pool.want and len(pool.starting) < self._provisioned_starting_max:
            if now_ns < pool.retry_ns:
                if pool.retry_ns < pool.hint_ns:
                    self._push_timer(pool, pool.retry_ns)
                return
            bucket = pool.version.function.provisioning
            if not bucket.available(now_ns):
                pool.retry_ns = bucket.ready_ns(now_ns)
            elif self._start_provisioned(now_ns, pool, commands):
                bucket.take(now_ns)
        if pool.living >= pool.want:
            pool.no_room = False
        assert not pool.no_room or pool.starting
        assert len(pool.starting) <= self._provisioned_starting_max

    def _start_provisioned(self, now_ns: int, pool: Pool, commands: Commands) -> bool:
        kind = InitializationType.PROVISIONED_CONCURRENCY
        environment = self._launch(now_ns, pool.version, kind, 0, commands)
        if environment is None:
            if any(other.goal > other.want for other in pool.allocation.pools.values()):
                self._let_go(now_ns, pool.allocation, commands)
                return False
            pool.no_room = True
            pool.reason = ProvisionedReason.NO_ROOM
            pool.retry_ns = now_ns + ROOM_RETRY_NS
            return False
        assert pool.living < pool.want
        environment.pool = pool
        pool.starting[environment.id] = environment
        pool.no_room = False
        if pool.reason is ProvisionedReason.NO_ROOM:
            pool.reason = None
        assert environment.request is None
        return True

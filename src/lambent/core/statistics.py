"""Frozen pictures of the scheduler's counts, for `lambent top`, metrics and tests.

For: reading. It must not change anything, and costs time in proportion to the number of environments: not
for the hot path, but for VersionLevels, which is a handful of numbers that are there anyway. Outcomes: structs that
own their data, so that a reader can keep them.

What CloudWatch calls it: ConcurrentExecutions is `in_flight`, UnreservedConcurrentExecutions
`unreserved_in_flight`, ClaimedAccountConcurrency `claimed`, ProvisionedConcurrentExecutions
`provisioned.in_flight`, ProvisionedConcurrencyUtilization `provisioned.utilization()`. Counters (cold starts,
spillovers, throttles) count from the VersionSet or FunctionSet on and never fall.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lambent.core.admission import Account, Function, Version
from lambent.core.environment import Environment, EnvironmentState
from lambent.core.placement import Worker
from lambent.core.provisioned import Pool
from lambent.model.invocation import ThrottleReason


class AccountStatistics(msgspec.Struct, frozen=True):
    account: int
    concurrency_max: int
    #: Sum of what its functions have reserved.
    reserved: int
    #: Requests from admission to Complete, Init included.
    in_flight: int
    #: Those of them that count in the unreserved pool.
    unreserved_in_flight: int
    #: Those of them that run in provisioned environments.
    provisioned_in_flight: int = 0
    #: What provisioned concurrency takes out of the unreserved pool.
    provisioned: int = 0
    #: What is not to be had on demand: unreserved in use, all reserved, and `provisioned`.
    claimed: int = 0
    #: How many requests may be in flight in the unreserved pool.
    unreserved_max: int = 0


class FunctionStatistics(msgspec.Struct, frozen=True):
    """Removed functions are not listed, even while their last requests run."""

    function: int
    account: int
    reserved: int | None
    #: Provisioned included.
    in_flight: int
    provisioned_in_flight: int = 0
    #: What its provisioned concurrency claims of its reservation, or of the account.
    provisioned: int = 0
    throttles: dict[ThrottleReason, int] = {}


class ProvisionedStatistics(msgspec.Struct, frozen=True):
    """The provisioned concurrency of one version."""

    allocation: int
    #: Asked for; less than `kept` while an alias moves.
    wanted: int
    kept: int
    starting: int
    #: Environments whose Init is done: idle, busy, or being reset.
    allocated: int
    idle: int
    #: How many requests at once it serves, and how many it has.
    available: int
    in_flight: int
    #: Starts that failed one after the other.
    failures: int

    def utilization(self) -> float:
        """Part of what is available that is in use; may pass 1 while it shrinks."""
        assert self.in_flight >= 0
        return self.in_flight / self.available if self.available else 0.0


class VersionStatistics(msgspec.Struct, frozen=True):
    """Retired versions are listed as long as they have environments."""

    version: int
    function: int
    retired: bool
    in_flight: int
    #: Number of environments in each state that occurs, provisioned ones included.
    environments: dict[EnvironmentState, int]
    provisioned: ProvisionedStatistics | None = None
    cold_starts: int = 0
    provisioned_invocations: int = 0
    spillovers: int = 0
    throttles: dict[ThrottleReason, int] = {}


class VersionLevels(msgspec.Struct, frozen=True):
    """What the metrics of one invocation need to know, see Scheduler.levels()."""

    function_in_flight: int
    account_in_flight_unreserved: int
    account_claimed: int
    #: Of the version; 0 without provisioned concurrency.
    provisioned_in_flight: int
    provisioned_available: int
    #: The allocation that keeps provisioned environments of this version; None: there is none.
    allocation: int | None = None


class WorkerStatistics(msgspec.Struct, frozen=True):
    """Environments that are stopping use no memory here, see placement.py."""

    worker: int
    memory_mib: int
    memory_used_mib: int
    environments: int
    environments_max: int


class SchedulerStatistics(msgspec.Struct, frozen=True):
    now_ns: int
    draining: bool
    in_flight: int
    #: Number of environments in each state that occurs.
    environments: dict[EnvironmentState, int]
    #: Entries in the timer heap.
    timers: int
    accounts: list[AccountStatistics]
    functions: list[FunctionStatistics]
    versions: list[VersionStatistics]
    workers: list[WorkerStatistics]


def account_statistics(account: Account) -> AccountStatistics:
    reserved_in_flight = sum(
        function.in_flight for function in account.functions.values() if function.reserved is not None
    )
    assert reserved_in_flight >= 0
    assert account.unreserved.in_flight >= 0
    return AccountStatistics(
        account=account.id,
        concurrency_max=account.concurrency_max,
        reserved=account.reserved_sum,
        in_flight=account.unreserved.in_flight + reserved_in_flight + account.provisioned_in_flight,
        unreserved_in_flight=account.unreserved.in_flight,
        provisioned_in_flight=account.provisioned_in_flight,
        provisioned=account.provisioned_sum,
        claimed=account.claimed(),
        unreserved_max=account.unreserved.limit,
    )


def function_statistics(function: Function) -> FunctionStatistics:
    assert function.scope.in_flight >= function.in_flight
    return FunctionStatistics(
        function=function.id,
        account=function.account.id,
        reserved=function.reserved,
        in_flight=function.in_flight + function.provisioned_in_flight,
        provisioned_in_flight=function.provisioned_in_flight,
        provisioned=function.provisioned,
        throttles=dict(function.throttles),
    )


def provisioned_statistics(pool: Pool) -> ProvisionedStatistics:
    assert pool.claimed >= pool.online
    assert len(pool.idle) <= pool.allocated
    return ProvisionedStatistics(
        allocation=pool.allocation.id,
        wanted=pool.want,
        kept=pool.goal,
        starting=len(pool.starting),
        allocated=pool.allocated,
        idle=len(pool.idle),
        available=pool.online,
        in_flight=pool.in_flight,
        failures=pool.failures,
    )


def version_levels(version: Version) -> VersionLevels:
    function, pool = version.function, version.pool
    assert function.in_flight >= 0
    assert function.provisioned_in_flight >= 0
    return VersionLevels(
        function_in_flight=function.in_flight + function.provisioned_in_flight,
        account_in_flight_unreserved=function.account.unreserved.in_flight,
        account_claimed=function.account.claimed(),
        provisioned_in_flight=0 if pool is None else pool.in_flight,
        provisioned_available=0 if pool is None else pool.online,
        allocation=None if pool is None else pool.allocation.id,
    )


def version_statistics(versions: Iterable[Version], environments: Iterable[Environment]) -> list[VersionStatistics]:
    """One line for each version that is known or still has environments."""
    # By object: a version id may have been set again after it was retired.
    lines: dict[int, tuple[Version, dict[EnvironmentState, int], int]] = {
        id(version): (version, {}, 0) for version in versions
    }
    for environment in environments:
        version = environment.version
        _, states, in_flight = lines.get(id(version), (version, {}, 0))
        states[environment.state] = states.get(environment.state, 0) + 1
        in_flight += environment.requests()
        lines[id(version)] = (version, states, in_flight)
    return [
        VersionStatistics(
            version=version.id,
            function=version.function.id,
            retired=version.retired,
            in_flight=in_flight,
            environments=states,
            provisioned=None if version.pool is None else provisioned_statistics(version.pool),
            cold_starts=version.cold_starts,
            provisioned_invocations=version.provisioned_invocations,
            spillovers=version.spillovers,
            throttles=dict(version.throttles),
        )
        for version, states, in_flight in lines.values()
    ]


def worker_statistics(worker: Worker) -> WorkerStatistics:
    assert worker.occupied <= len(worker.environments)
    return WorkerStatistics(
        worker=worker.id,
        memory_mib=worker.memory_mib,
        memory_used_mib=worker.memory_used_mib,
        environments=worker.occupied,
        environments_max=worker.environments_max,
    )

"""Frozen pictures of the scheduler's counts, for `lambent top`, metrics and tests.

For: reading. It must not change anything, and costs time in proportion to the number of environments: not
for the hot path. Outcomes: structs that own their data, so that a reader can keep them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lambent.core.admission import Account, Function, Version
from lambent.core.environment import Environment, EnvironmentState
from lambent.core.placement import Worker


class AccountStatistics(msgspec.Struct, frozen=True):
    account: int
    concurrency_max: int
    #: Sum of what its functions have reserved.
    reserved: int
    #: Requests from admission to Complete, Init included.
    in_flight: int
    #: Those of them that count in the unreserved pool.
    unreserved_in_flight: int


class FunctionStatistics(msgspec.Struct, frozen=True):
    """Removed functions are not listed, even while their last requests run."""

    function: int
    account: int
    reserved: int | None
    in_flight: int


class VersionStatistics(msgspec.Struct, frozen=True):
    """Retired versions are listed as long as they have environments."""

    version: int
    function: int
    retired: bool
    in_flight: int
    #: Number of environments in each state that occurs.
    environments: dict[EnvironmentState, int]


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
        in_flight=account.unreserved.in_flight + reserved_in_flight,
        unreserved_in_flight=account.unreserved.in_flight,
    )


def function_statistics(function: Function) -> FunctionStatistics:
    assert function.scope.in_flight >= function.in_flight
    return FunctionStatistics(
        function=function.id,
        account=function.account.id,
        reserved=function.reserved,
        in_flight=function.in_flight,
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
        in_flight += environment.request is not None
        lines[id(version)] = (version, states, in_flight)
    return [
        VersionStatistics(
            version=version.id,
            function=version.function.id,
            retired=version.retired,
            in_flight=in_flight,
            environments=states,
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

"""How fast the scheduler is: pairs of Invoke and InvocationEnded a second, on one core, nothing else measured.

    python -m tests.simulation.measure [--rounds N]

For: comparing two states of the core on one machine; the medians of several rounds, as single ones differ by some
per cent. The cases: `warm` is one version with 100 idle environments; the others the same with provisioned
environments, tenants, or ten requests to an environment, where the core knows them.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

from lambent.core import events
from lambent.core.events import (
    AccountSet,
    AnyEvent,
    Dispatch,
    EnvironmentReady,
    FunctionSet,
    InvocationEnded,
    Invoke,
    Start,
    VersionSet,
    WorkerJoined,
)
from lambent.core.scheduler import Scheduler
from lambent.model.invocation import Outcome

PAIRS = 100_000
IN_FLIGHT = 100
S = 1_000_000_000


def make(version: VersionSet, *facts: AnyEvent) -> Scheduler:
    scheduler = Scheduler()
    for fact in (AccountSet(1, 1_000_000), FunctionSet(2, 1), version, WorkerJoined(4, 1 << 40, 1 << 20), *facts):
        commands = scheduler.handle(0, fact)
        while commands:
            # Whatever is started is ready at once.
            ready = [EnvironmentReady(command.environment) for command in commands if isinstance(command, Start)]
            commands = [more for event in ready for more in scheduler.handle(0, event)]
    return scheduler


def pairs_per_s(scheduler: Scheduler, invoke: Callable[[int], Invoke]) -> float:
    handle, now_ns, request, busy = scheduler.handle, 1, 0, []
    for _ in range(IN_FLIGHT):
        request += 1
        (command,) = handle(now_ns, invoke(request))
        if isinstance(command, Start):
            (command,) = handle(now_ns, EnvironmentReady(command.environment))
        assert isinstance(command, Dispatch)
        busy.append(InvocationEnded(command.environment, request, Outcome.SUCCESS))
    for ended in busy:
        handle(now_ns, ended)
    invokes = [invoke(request + position + 1) for position in range(PAIRS)]
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    for event in invokes:
        now_ns += 1_000
        command = handle(now_ns, event)[0]
        handle(now_ns, InvocationEnded(command.environment, event.request, Outcome.SUCCESS))  # type: ignore[union-attr]
    elapsed = time.perf_counter() - begin
    gc.enable()
    return PAIRS / elapsed


def cases() -> dict[str, Callable[[], tuple[Scheduler, Callable[[int], Invoke]]]]:
    limits = (128, 3 * S, 10 * S)
    made: dict[str, Callable[[], tuple[Scheduler, Callable[[int], Invoke]]]] = {
        "warm": lambda: (make(VersionSet(3, 2, *limits)), lambda request: Invoke(request, 3))
    }
    if hasattr(events, "ProvisionedSet"):
        made["provisioned"] = lambda: (
            make(VersionSet(3, 2, *limits), events.ProvisionedSet(9, ((3, 1_000),))),
            lambda request: Invoke(request, 3, True),
        )
        made["tenants"] = lambda: (
            make(VersionSet(3, 2, *limits, tenancy=True)),
            lambda request: Invoke(request, 3, tenant=1 + request % 50),
        )
        made["ten at once"] = lambda: (
            make(VersionSet(3, 2, *limits, concurrency_per_environment=10)),
            lambda request: Invoke(request, 3),
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", help="only this one")
    arguments = parser.parse_args()
    for name, case in cases().items():
        if arguments.case in (None, name):
            figures = [pairs_per_s(*case()) for _ in range(arguments.rounds)]
            print(f"{name:12} {statistics.median(figures):10,.0f} pairs/s  (best {max(figures):,.0f})", flush=True)


if __name__ == "__main__":
    main()

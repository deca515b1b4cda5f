"""A seeded run of the scheduler against fake workers, in virtual time, with faults.

    python -m tests.simulation.simulator --seed N          repeat one seed, and print what happened
    python -m tests.simulation.simulator --first A --count N [--seconds S]     many

For: finding what unit tests do not think of. The seed draws everything: the configuration (swarm: each run
has other limits, times, workers and kinds of faults), the arrivals, the latencies. Outcomes: `run(seed)`
returns a Result, or raises SeedFailed whose message is the line that repeats it.

Phase one: anything goes wrong that may go wrong with facts and environments, and the checkers (checkers.py)
see that no command is wrong. Phase two: the faults stop; everything admitted must end, and after the idle
time nothing may be left. At the end the recording of the run is replayed on a fresh scheduler.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lambent.core.events import (
    AccountSet,
    AnyCommand,
    AnyEvent,
    Dispatch,
    Drain,
    EnvironmentDebugged,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionRemoved,
    FunctionSet,
    InitFailed,
    InvocationEnded,
    Invoke,
    ProvisionedSet,
    Reset,
    ResetDone,
    Start,
    Stop,
    Tick,
    VersionRetired,
    VersionSet,
    WorkerJoined,
    WorkerLost,
)
from lambent.core.recording import decode, encode, replay
from lambent.core.scheduler import ScalingProfile, Scheduler
from lambent.model.invocation import Outcome

from .books import Violation, require
from .checkers import Checker

MS = 1_000_000
S = 1_000 * MS
STEPS_MAX = 100_000
#: Of a profile, an idle time, and (by name) how many provisioned environments of a version may start at once.
SchedulerMaker = Callable[..., Scheduler]
#: Every limit of a provisioned environment's life and the longest back-off have passed by then.
CONVERGED_NS = 400 * S

FAULTS = (
    "dies_starting",
    "dies_any_time",
    "hangs",
    "fact_lost",
    "fact_doubled",
    "fact_late",
    "init_slow",
    "init_fails",
    "runtime_exits",
    "handler_slow",
    "handler_errors",
    "tick_late",
)


class SeedFailed(Exception):
    """A seed found something."""


@dataclass
class Result:
    seed: int
    steps: int
    invoked: int
    end_ns: int
    seen: dict[str, int]


@dataclass
class FakeEnvironment:
    """The truth about an environment on a fake worker. Commands reach it in order, one at a time."""

    id: int
    worker: int
    version: int
    alive: bool = True
    #: It does nothing any more, but can be stopped.
    hangs: bool = False
    #: What it works on; more than one where the version allows it.
    requests: set[int] = field(default_factory=set)
    slots: int = 1
    tenants: set[int] = field(default_factory=set)
    #: What is under way is void once this has changed.
    generation: int = 0
    #: No command arrives before this, so that they stay in order.
    inbox_ns: int = 0
    resetting: bool = False
    #: Those that came during a reset.
    waiting: list[Dispatch] = field(default_factory=list)


@dataclass
class Plan:
    """What the seed draws before the run."""

    rng: random.Random
    profile: ScalingProfile = ScalingProfile.CURRENT
    idle_reclaim_ns: int = 0
    fault_until_ns: int = 0
    arrive_until_ns: int = 0
    arrivals: int = 0
    grid_ns: int = 1
    drain: bool = False
    faults: dict[str, float] = field(default_factory=dict)
    latency_max_ns: int = 0
    init_max_ns: int = 0
    handler_max_ns: int = 0
    #: How likely each kind of version is, and changes of allocations.
    provisioned: float = 0.0
    snap_start: float = 0.0
    tenancy: float = 0.0
    sharing: float = 0.0
    #: How likely an environment has a debugger.
    debugged: float = 0.0
    #: Apart, so that the worlds of the seeds stay what they were.
    debugging: random.Random = field(default_factory=random.Random)
    starting_max: int = 1

    def __post_init__(self) -> None:
        rng = self.rng
        self.profile = rng.choice([ScalingProfile.CURRENT, ScalingProfile.CLASSIC])
        self.idle_reclaim_ns = rng.choice([0, 1, 200 * MS, 2 * S, 60 * S, 600 * S])
        self.fault_until_ns = rng.choice([2 * S, 20 * S, 200 * S])
        self.arrive_until_ns = self.fault_until_ns * 3 // 2
        self.arrivals = rng.randint(20, 250)
        self.grid_ns = rng.choice([1, MS, 100 * MS])
        self.drain = rng.random() < 0.4
        for fault in FAULTS:
            if rng.random() < 0.5:
                self.faults[fault] = rng.choice([0.02, 0.1, 0.3])
        if rng.random() < 0.1:
            self.faults["init_fails"] = 0.95
        self.latency_max_ns = rng.choice([0, MS, 50 * MS])
        self.init_max_ns = rng.choice([10 * MS, 500 * MS, 5 * S])
        self.handler_max_ns = rng.choice([5 * MS, 5 * MS, 300 * MS, 3 * S])
        self.provisioned = rng.choice([0.0, 0.3, 1.0])
        self.snap_start = rng.choice([0.0, 0.0, 0.2])
        self.tenancy = rng.choice([0.0, 0.0, 0.4])
        self.sharing = rng.choice([0.0, 0.0, 0.5])
        self.starting_max = rng.choice([1, 2, 8])
        self.debugging = random.Random(self.arrivals)
        if not self.faults.keys() & {"hangs", "fact_lost"}:  # without a deadline such a request has no end
            self.debugged = self.debugging.choice([0.0, 0.0, 0.3])


class Simulator:
    def __init__(self, seed: int, make: SchedulerMaker = Scheduler) -> None:
        self.rng = random.Random(seed)
        self.plan = Plan(self.rng)
        self.make = make
        self.scheduler = self.make_one()
        self.checker = Checker(
            self.plan.profile is ScalingProfile.CLASSIC,
            self.plan.idle_reclaim_ns,
            self.scheduler.levels,
            self.plan.starting_max,
        )
        self.now_ns = 0
        self.agenda: list[tuple[int, int, Callable[[], None]]] = []
        self.serial = 0
        self.environments: dict[int, FakeEnvironment] = {}
        self.accounts: list[int] = []
        self.functions: dict[int, int] = {}
        self.versions: dict[int, VersionSet] = {}
        self.slots_of: dict[int, int] = {}
        self.workers: dict[int, WorkerJoined] = {}
        #: Allocations: function, and what they ask for.
        self.allocations: dict[int, tuple[int, dict[int, int]]] = {}
        self.next_id = 0
        self.request = 0
        self.tenant_of: dict[int, int] = {}
        self.recording: list[bytes] = []

    def make_one(self) -> Scheduler:
        plan = self.plan
        return self.make(plan.profile, plan.idle_reclaim_ns, provisioned_starting_max=plan.starting_max)

    # --- plumbing -----------------------------------------------------------------------------------

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Do this then; times are rounded up to the grid, so that some seeds have many at the same moment."""
        grid_ns = self.plan.grid_ns
        self.serial += 1
        heapq.heappush(self.agenda, (-(-time_ns // grid_ns) * grid_ns, self.serial, action))

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, action)

    def strikes(self, fault: str) -> bool:
        rate = self.plan.faults.get(fault, 0.0)
        return rate > 0 and self.now_ns < self.plan.fault_until_ns and self.rng.random() < rate

    def span(self, most_ns: int) -> int:
        """A time up to `most_ns`, short ones more often."""
        return int(most_ns * self.rng.random() ** 3)

    def tell(self, event: AnyEvent) -> None:
        """Give a fact to scheduler and checkers, and the commands to the workers."""
        commands = self.scheduler.handle(self.now_ns, event)
        self.recording.append(encode(self.now_ns, event, commands))
        self.checker.step(self.now_ns, event, commands)
        for command in commands:
            self.obey(command)

    def tell_in_order(self, event: AnyEvent) -> None:
        """The same, but what is due comes first: see checkers.py."""
        deadline_ns = self.scheduler.next_deadline()
        if deadline_ns is not None and deadline_ns <= self.now_ns:
            self.tell(Tick())
        self.tell(event)

    def fact(self, event: AnyEvent) -> None:
        """A fact sets out from a worker; it may be lost, late, or come twice."""
        if self.strikes("fact_lost"):
            return
        tell = self.tell_in_order if isinstance(event, EnvironmentDied) else self.tell
        late_ns = self.span(30 * S) if self.strikes("fact_late") else 0
        self.after(self.span(self.plan.latency_max_ns) + late_ns, lambda: tell(event))
        if self.strikes("fact_doubled"):
            self.after(self.span(30 * S), lambda: tell(event))

    # --- the fake worker ----------------------------------------------------------------------------

    def obey(self, command: AnyCommand) -> None:
        if isinstance(command, Start):
            environment = FakeEnvironment(command.environment, command.worker, command.version)
            environment.slots = self.slots_of.get(command.version, 1)
            self.environments[command.environment] = environment
            self.deliver(environment, lambda: self.on_start(environment))
            if self.strikes("dies_any_time"):
                self.after(self.span(20 * S), lambda: self.die(environment))
        elif isinstance(command, Dispatch | Reset | Stop):
            self.deliver_command(self.environments[command.environment], command)

    def deliver_command(self, environment: FakeEnvironment, command: Dispatch | Reset | Stop) -> None:
        if isinstance(command, Dispatch):
            self.deliver(environment, lambda: self.on_dispatch(environment, command))
        elif isinstance(command, Reset):
            self.deliver(environment, lambda: self.on_reset(environment))
        else:
            self.deliver(environment, lambda: self.die(environment))

    def deliver(self, environment: FakeEnvironment, action: Callable[[], None]) -> None:
        arrival_ns = self.now_ns + self.span(self.plan.latency_max_ns)
        environment.inbox_ns = max(environment.inbox_ns, arrival_ns)
        self.at(environment.inbox_ns, action)

    def work(self, environment: FakeEnvironment, delay_ns: int, action: Callable[[], None]) -> None:
        """The environment does this for a while, unless something else happens to it."""
        generation = environment.generation

        def done() -> None:
            if environment.alive and not environment.hangs and environment.generation == generation:
                action()

        self.after(delay_ns, done)

    def on_start(self, environment: FakeEnvironment) -> None:
        if not environment.alive or environment.worker not in self.workers:
            return
        environment.hangs = self.strikes("hangs")
        if self.strikes("dies_starting"):
            self.work(environment, self.span(100 * MS), lambda: self.die(environment))
        else:
            self.work(environment, self.span(100 * MS), lambda: self.on_started(environment))

    def on_started(self, environment: FakeEnvironment) -> None:
        if self.plan.debugged and self.plan.debugging.random() < self.plan.debugged:
            self.tell_in_order(EnvironmentDebugged(environment.id))
        self.fact(EnvironmentStarted(environment.id))
        slow = self.strikes("init_slow")
        init_ns = self.span(20 * S if slow else self.plan.init_max_ns)
        fails = self.strikes("init_fails")
        event = InitFailed(environment.id) if fails else EnvironmentReady(environment.id)
        self.work(environment, init_ns, lambda: self.fact(event))

    def on_dispatch(self, environment: FakeEnvironment, command: Dispatch) -> None:
        if not environment.alive:
            self.fact(EnvironmentDied(environment.id))
            return
        if environment.resetting:
            environment.waiting.append(command)
            require(len(environment.waiting) <= environment.slots, "too many requests in one environment", command)
            return
        environment.requests.add(command.request)
        require(len(environment.requests) <= environment.slots, "too many requests in one environment", command)
        environment.tenants.add(self.tenant_of[command.request])
        require(len(environment.tenants) == 1, "two tenants in one environment", command, environment.tenants)
        if environment.slots == 1:
            environment.generation += 1
        environment.hangs = environment.hangs or self.strikes("hangs")
        outcome, most_ns = Outcome.SUCCESS, self.plan.handler_max_ns
        if command.reinit and self.strikes("init_fails"):
            outcome = Outcome.INIT_ERROR
        elif self.strikes("runtime_exits"):
            outcome = Outcome.RUNTIME_EXIT
        elif self.strikes("handler_errors"):
            outcome = Outcome.ERROR
        if self.strikes("handler_slow"):
            most_ns = 100 * S
        self.work(environment, self.span(most_ns), lambda: self.on_end(environment, command.request, outcome))

    def on_end(self, environment: FakeEnvironment, request: int, outcome: Outcome) -> None:
        environment.requests.discard(request)
        if outcome in (Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR):
            environment.requests.clear()
            environment.generation += 1
        self.fact(InvocationEnded(environment.id, request, outcome))

    def on_reset(self, environment: FakeEnvironment) -> None:
        environment.generation += 1
        environment.requests.clear()
        # A doubled ResetDone can let the scheduler dispatch into a reset; the next Reset means that one too.
        environment.waiting.clear()
        environment.resetting = True
        self.work(environment, self.span(200 * MS), lambda: self.on_reset_done(environment))

    def on_reset_done(self, environment: FakeEnvironment) -> None:
        environment.resetting = False
        self.fact(ResetDone(environment.id))
        waiting, environment.waiting = environment.waiting, []
        for command in waiting:
            self.on_dispatch(environment, command)

    def die(self, environment: FakeEnvironment) -> None:
        """By itself, or because it was told to stop. One that is gone says so again."""
        environment.alive = False
        environment.requests.clear()
        self.fact(EnvironmentDied(environment.id))

    # --- configuration ------------------------------------------------------------------------------

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def configure(self) -> None:
        for _ in range(self.rng.randint(1, 2)):
            self.accounts.append(self.new_id())
            self.set_account(self.accounts[-1])
        for _ in range(self.rng.randint(1, 4)):
            self.new_function()
        for _ in range(self.rng.randint(1, 4)):
            self.join_worker(self.new_id())

    def set_account(self, account: int) -> None:
        limit = self.rng.choice([0, 1, 1, 3, 3, 10, 10, 40, 1000])
        burst = self.rng.choice([0, 1, 3, 10, 500])
        self.tell_in_order(AccountSet(account, limit, burst))

    def new_function(self) -> None:
        function = self.new_id()
        self.functions[function] = self.rng.choice(self.accounts)
        self.set_reserved(function)
        for _ in range(self.rng.randint(1, 2)):
            self.new_version(function)

    def set_reserved(self, function: int) -> None:
        reserved = self.rng.choice([None, None, None, 0, 1, 2, 5, 20])
        self.tell_in_order(FunctionSet(function, self.functions[function], reserved))

    def new_version(self, function: int) -> None:
        rng, plan = self.rng, self.plan
        version = VersionSet(
            self.new_id(),
            function,
            rng.choice([128, 128, 512, 1769]),
            rng.choice([1, 100 * MS, S, S, 3 * S, 3 * S, 60 * S]),
            rng.choice([200 * MS, S, 10 * S]),
            rng.random() < plan.snap_start,
            rng.choice([100 * MS, 10 * S]),
            rng.random() < plan.tenancy,
            rng.choice([2, 3, 10]) if rng.random() < plan.sharing else 1,
        )
        self.versions[version.version] = version
        self.slots_of[version.version] = version.concurrency_per_environment
        self.tell_in_order(version)

    def retire(self, version: int) -> None:
        self.versions.pop(version, None)
        self.tell_in_order(VersionRetired(version))

    def remove_function(self, function: int) -> None:
        del self.functions[function]
        for version in list(self.versions.values()):
            if version.function == function:
                del self.versions[version.version]
        self.tell_in_order(FunctionRemoved(function))

    def provision(self) -> None:
        """As configurations of versions and aliases come and go: new ones, other counts, moves, weights, removals."""
        rng = self.rng
        if self.allocations and rng.random() < 0.7:
            number = rng.choice(sorted(self.allocations))
            function, asked = self.allocations[number]
        else:
            if not self.functions:
                return
            number, function, asked = self.new_id(), rng.choice(sorted(self.functions)), {}
        versions = sorted(version for version, known in self.versions.items() if known.function == function)
        match rng.randint(0, 5):
            case 0:
                asked = {}
            case 1 | 2 if asked:
                asked = {version: rng.randint(0, 8) for version in asked}
            case 3 if len(versions) > 1:
                asked = {version: rng.randint(1, 4) for version in rng.sample(versions, 2)}
            case _ if versions:
                asked = {rng.choice(versions): rng.choice([1, 2, 3, 5, 12])}
            case _:
                asked = {rng.randint(0, self.next_id + 1): 1} if not self.functions else {}
        self.allocations[number] = function, asked
        self.tell_in_order(ProvisionedSet(number, tuple(asked.items())))
        if not asked:
            del self.allocations[number]

    def give_back(self) -> None:
        """All that was provisioned, so that nothing is left in the end. What should be there must be there by now."""
        self.tell(Tick())
        if not self.checker.draining:
            self.checker.converged()
        for number in list(self.allocations):
            self.tell_in_order(ProvisionedSet(number))

    def join_worker(self, worker: int) -> None:
        memory_mib = self.rng.choice([256, 2_048, 8_192, 100_000])
        event = WorkerJoined(worker, memory_mib, self.rng.choice([1, 6, 20, 1_000]))
        self.workers[worker] = event
        self.tell_in_order(event)

    def lose_worker(self, worker: int) -> None:
        del self.workers[worker]
        for environment in self.environments.values():
            if environment.worker == worker:
                environment.alive = False
                environment.requests.clear()
        self.tell_in_order(WorkerLost(worker))
        if self.rng.random() < 0.8:
            # The same host comes back, or another one.
            again = worker if self.rng.random() < 0.5 else self.new_id()
            self.after(self.span(20 * S), lambda: self.join_worker(again))

    def change(self) -> None:
        """One change of configuration, drawn."""
        function = self.rng.choice(sorted(self.functions)) if self.functions else None
        version = self.rng.choice(sorted(self.versions)) if self.versions else None
        worker = self.rng.choice(sorted(self.workers)) if self.workers else None
        match self.rng.randint(0, 9):
            case 0 | 1 | 2 if function is not None:
                self.set_reserved(function)
            case 3 if function is not None:
                self.remove_function(function)
            case 4:
                self.new_function()
            case 5 | 6 if version is not None:
                updated = self.versions[version].function
                self.new_version(updated)
                self.retire(version)
            case 7:
                self.set_account(self.rng.choice(self.accounts))
            case 8 if worker is not None:
                self.lose_worker(worker)
            case 9 if worker is not None:
                self.join_worker(worker)
            case _:
                self.new_function()

    # --- the run ------------------------------------------------------------------------------------

    def arrive(self) -> None:
        """A request or a burst of them; some for versions that are gone."""
        for _ in range(self.rng.choice([1, 1, 1, 3, 12])):
            if self.rng.random() < 0.02 or not self.versions:
                version = self.rng.randint(0, self.next_id + 1)
            else:
                version = self.rng.choice(sorted(self.versions))
            self.invoke(version, 0.2)

    def invoke(self, version: int, asynchronous: float) -> None:
        self.request += 1
        known = self.versions.get(version)
        tenant = self.rng.choice([1, 1, 2, 3]) if known is not None and known.tenancy else 0
        self.tenant_of[self.request] = tenant
        self.tell(Invoke(self.request, version, self.rng.random() < asynchronous, tenant))

    def rush(self) -> None:
        """Many short-spaced requests for one version: what the rate limits are for."""
        if not self.versions:
            return
        version = self.rng.choice(sorted(self.versions))
        gap_ns = self.rng.choice([3 * MS, 10 * MS, 20 * MS])

        for position in range(self.rng.randint(10, 120)):
            self.after(position * gap_ns, lambda: self.invoke(version, 0.1))

    def schedule(self) -> None:
        plan = self.plan
        for _ in range(self.rng.choice([0, 2, 6])):
            self.at(int(self.rng.random() * plan.arrive_until_ns), self.rush)
        for _ in range(plan.arrivals):
            self.at(int(self.rng.random() * plan.arrive_until_ns), self.arrive)
        for _ in range(self.rng.choice([0, 2, 10, 30])):
            self.at(int(self.rng.random() * plan.fault_until_ns), self.change)
        if plan.provisioned:
            for _ in range(int(plan.provisioned * self.rng.choice([2, 10, 30]))):
                self.at(int(self.rng.random() * plan.fault_until_ns), self.provision)
            self.at(plan.fault_until_ns + CONVERGED_NS, self.give_back)
        if plan.drain:
            drain_ns = int(plan.arrive_until_ns * self.rng.choice([0.5, 1.0, 1.2]))
            self.at(drain_ns, lambda: self.tell_in_order(Drain()))

    def run(self) -> tuple[int, int]:
        """Until nothing is left to happen. Returns the number of steps and of requests."""
        self.configure()
        self.schedule()
        steps, known_ns, tick_ns = 0, -1, 0
        while True:
            steps += 1
            require(steps < STEPS_MAX, "it does not come to an end")
            if steps % 64 == 0:
                self.checker.compare(self.scheduler.statistics())
            deadline_ns = self.scheduler.next_deadline()
            if deadline_ns is not None and deadline_ns != known_ns:
                late_ns = self.span(5 * S) if self.strikes("tick_late") else 0
                known_ns, tick_ns = deadline_ns, max(self.now_ns, deadline_ns + late_ns)
            if self.agenda and (deadline_ns is None or self.agenda[0][0] <= tick_ns):
                self.now_ns, _, action = heapq.heappop(self.agenda)
                action()
            elif deadline_ns is not None:
                self.now_ns, known_ns = max(self.now_ns, tick_ns), -1
                self.tell(Tick())
            else:
                break
        self.checker.at_the_end(self.scheduler.statistics(), self.request)
        require(not self.scheduler.environments(), "environments left", self.scheduler.environments())
        mismatch = replay(decode(self.recording), self.make_one())
        require(mismatch is None, "the replay went another way", mismatch)
        return steps, self.request


def run(seed: int, make: SchedulerMaker = Scheduler) -> Result:
    """One seed, from configuration to quiet."""
    simulator = Simulator(seed, make)
    try:
        steps, invoked = simulator.run()
    except (Violation, AssertionError, LookupError) as error:
        kind = type(error).__name__
        raise SeedFailed(
            f"{kind}: {error}\nat {simulator.now_ns} ns; repeat: python -m tests.simulation.simulator --seed {seed}"
        ) from error
    return Result(seed, steps, invoked, simulator.now_ns, simulator.checker.seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="repeat one seed")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        result = run(arguments.seed)
        print(f"seed {result.seed}: {result.steps} steps, {result.invoked} requests, {result.end_ns / S:.1f} s")
        for name, count in sorted(result.seen.items()):
            print(f"  {name:45} {count:6}")
        return 0
    begin, failed, done = time.monotonic(), 0, 0
    seen: dict[str, int] = {}
    for seed in range(arguments.first, arguments.first + arguments.count):
        if time.monotonic() - begin > arguments.seconds:
            break
        done += 1
        try:
            for name, count in run(seed).seen.items():
                seen[name] = seen.get(name, 0) + count
        except SeedFailed as failure:
            failed += 1
            print(failure, flush=True)
    print(f"{done} seeds in {time.monotonic() - begin:.1f} s, {failed} failed")
    for name, count in sorted(seen.items()):
        print(f"  {name:45} {count:8}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

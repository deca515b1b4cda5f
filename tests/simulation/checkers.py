"""Watches the scheduler from outside: keeps its own books from facts and commands only, and raises Violation.

For: the simulator, which sends a Tick before configuration and deaths when timers are due, so that the order
of commands and fact is clear; with other facts, the commands of due timers come first. It must not look into
the scheduler; its books are counted from scratch wherever the scheduler counts by steps, and with fractions
where the scheduler uses scaled integers. Outcomes: silence, or a Violation that says what is wrong.

An environment here is *preparing* (provisioned, before the end of its Init), *waiting* (started, not yet given its
first request), *busy*, *resetting* (without a request), *idle*, *stopping* or *dead*.

One number is asked for and then judged: how many requests a version's provisioned environments serve at once
(`Scheduler.levels`, what the driver's metrics read). It must be what the rules say it can be, from environments that
were counted here; admission is then predicted from it.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from lambent.core.environment import NEVER_NS
from lambent.core.events import (
    AccountSet,
    AnyCommand,
    AnyEvent,
    Complete,
    Dispatch,
    Drain,
    EnvironmentDebugged,
    EnvironmentDied,
    EnvironmentReady,
    FunctionRemoved,
    FunctionSet,
    InitFailed,
    InvocationEnded,
    Invoke,
    ProvisionedReason,
    ProvisionedSet,
    ProvisionedState,
    ProvisionedStatus,
    Reject,
    RejectReason,
    Reset,
    ResetDone,
    Start,
    Stop,
    StopReason,
    Throttle,
    VersionRetired,
    VersionSet,
    WorkerJoined,
    WorkerLost,
)
from lambent.core.statistics import SchedulerStatistics, VersionLevels
from lambent.model.invocation import InitializationType, Outcome, ThrottleReason

from .books import (
    AccountBook,
    AllocationBook,
    Bucket,
    EnvironmentBook,
    FunctionBook,
    Phase,
    PoolBook,
    VersionBook,
    Violation,
    require,
)


class Checker:
    """The books."""

    def __init__(
        self,
        classic: bool,
        idle_reclaim_ns: int,
        levels: Callable[[int], VersionLevels | None],
        provisioned_starting_max: int,
    ) -> None:
        self.levels = levels
        self.provisioned_starting_max = provisioned_starting_max
        self.allocations: dict[int, AllocationBook] = {}
        #: Of `open`: those that count in a pool, and those that found no room in one.
        self.pooled: dict[int, PoolBook] = {}
        self.spilled: dict[int, bool] = {}
        self.tenant_of: dict[int, int] = {}
        self.classic = classic
        self.idle_reclaim_ns = idle_reclaim_ns
        self.now_ns = 0
        self.draining = False
        self.accounts: dict[int, AccountBook] = {}
        self.functions: dict[int, FunctionBook] = {}
        self.versions: dict[int, VersionBook] = {}
        self.workers: dict[int, WorkerJoined] = {}
        #: Those not dead.
        self.environments: dict[int, EnvironmentBook] = {}
        self.environment_last = 0
        self.idle_count = 0
        #: Admitted and not ended: request -> version.
        self.open: dict[int, int] = {}
        #: Of those, the ones that no environment has been given yet.
        self.undispatched: set[int] = set()
        self.answered: set[int] = set()
        #: How often each command and each refusal was seen.
        self.seen: dict[str, int] = {}

    # --- one step -----------------------------------------------------------------------------------

    def step(self, now_ns: int, event: AnyEvent, commands: list[AnyCommand]) -> None:
        require(now_ns >= self.now_ns, "time went back in the simulator")
        self.now_ns = now_ns
        self.event = event
        if isinstance(event, Invoke):
            self._invoke(event, commands)
        else:
            self._fact_before(event)
            for command in commands:
                self._command(command)
            self._fact_after(event)
            self._sync()
        self._balance()
        self._judge_pools()

    def _count(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1

    def _balance(self) -> None:
        """Each request that waits has one environment that it waits for, and the other way round."""
        for book in self.environments.values():
            require(len(book.live) + len(book.lingering) <= self.versions[book.version].slots, "too many at once", book)
        waiting: dict[tuple[int, int, bool], int] = {}
        there: dict[tuple[int, int, bool], int] = {}
        for request in self.undispatched:
            key = self.open[request], self.tenant_of[request], request in self.pooled
            waiting[key] = waiting.get(key, 0) + 1
        for environment in self.environments.values():
            if environment.phase is Phase.WAITING:
                key = environment.version, environment.tenant, environment.pool is not None
                there[key] = there.get(key, 0) + 1
        for key in waiting.keys() | there.keys():
            requests, environments = waiting.get(key, 0), there.get(key, 0)
            fits = environments <= requests <= environments * self.versions[key[0]].slots
            require(fits, "requests without environments, or the reverse", key, requests, environments, self.event)

    # --- provisioned concurrency --------------------------------------------------------------------

    def _of(self, pool: PoolBook, *phases: Phase) -> list[EnvironmentBook]:
        return [book for book in self.environments.values() if book.pool is pool and book.phase in phases]

    def _allocated(self, pool: PoolBook) -> int:
        return len(self._of(pool, Phase.IDLE, Phase.BUSY, Phase.RESETTING, Phase.WAITING))

    def _drop(self, version: int) -> None:
        pool, self.versions[version].pool = self.versions[version].pool, None
        if pool is not None:
            pool.want = pool.goal = pool.online = 0
            book = self.allocations[pool.allocation]
            del book.pools[version]
            if not book.pools:
                del self.allocations[pool.allocation]

    def _provision(self, event: ProvisionedSet) -> None:
        if self.draining:
            return
        wants = {
            version: count
            for version, count in event.versions
            if version in self.versions and self.versions[version].provisionable() and count
        }
        book = self.allocations.get(event.allocation) or AllocationBook()
        if not wants:
            for version in list(book.pools):
                self._drop(version)
            return
        self.allocations[event.allocation] = book
        for version in wants:
            pool = self.versions[version].pool
            if pool is None:
                pool = PoolBook(version, event.allocation, Bucket(self.now_ns, 0, Fraction(0)))
                self.versions[version].pool = pool
            elif pool.allocation != event.allocation:
                before = self.allocations[pool.allocation]
                del before.pools[version]
                if not before.pools:
                    del self.allocations[pool.allocation]
                pool.allocation = event.allocation
            book.pools[version] = pool
        for version, pool in book.pools.items():
            pool.want = wants.get(version, 0)
            pool.goal = max(pool.want, min(pool.goal, self._allocated(pool)))
        book.complete = False

    def _sync(self) -> None:
        """After commands and facts: the pools that are gone, what the others serve, and what that leaves to scopes."""
        for book in self.environments.values():
            if book.phase in (Phase.STOPPING, Phase.DEAD):
                self._unbind(book)
        for number, book in list(self.allocations.items()):
            for version, pool in list(book.pools.items()):
                levels = self.levels(version)
                if levels is None or levels.allocation is None:
                    require(pool.want == 0, "a pool was dropped that is wanted", version, pool)
                    self._drop(version)
            if book.pools and all(self._allocated(pool) >= pool.want for pool in book.pools.values()):
                book.complete = True
            for version, pool in book.pools.items():
                levels = self.levels(version)
                assert levels is not None
                require(levels.allocation == number, "a version of another allocation", version, levels)
                self._judge_online(book, pool, levels.provisioned_available)
        for account in self.accounts:
            self._resize_unreserved(account)
        for number, function in self.functions.items():
            if function.rate is not None and function.reserved is not None:
                limit = 10 * max(0, function.reserved - self.claims(number))
                function.rate.resize(self.now_ns, limit, Fraction(limit))

    def _unbind(self, book: EnvironmentBook) -> None:
        """It is gone: the request that waited for it was placed again, on demand, if it still waits."""
        request, book.bound = book.bound, None
        if request is not None and request in self.undispatched and request in self.pooled:
            del self.pooled[request]
            self.spilled[request] = True

    def _judge_online(self, book: AllocationBook, pool: PoolBook, online: int) -> None:
        allocated = self._allocated(pool)
        served, held = min(allocated, pool.want), min(allocated, pool.online)
        if book.complete:
            require(online == served, "a complete pool serves", pool, allocated, online)
        else:
            stuck = book.told[2] is ProvisionedState.FAILED or book.told[3] is ProvisionedReason.NO_ROOM
            require(online == held or (stuck and online == served), "serves", online, pool, allocated, book)
        if online != pool.online:
            pool.online = online
            pool.rate.resize(self.now_ns, 10 * online, Fraction(10 * online))

    def _judge_pools(self) -> None:
        """Never more than is asked for, beyond what an alias leaves behind; and the driver was told the truth."""
        for book in self.allocations.values():
            if book.complete:
                for pool in book.pools.values():
                    pool.goal = pool.want
            for pool in book.pools.values():
                free = len(self._of(pool, Phase.IDLE, Phase.PREPARING, Phase.RESETTING))
                busy = len(self._of(pool, Phase.BUSY, Phase.WAITING))
                starting = len(self._of(pool, Phase.PREPARING))
                require(free == 0 or free + busy <= pool.goal, "more than asked for", pool, free, busy)
                require(starting <= self.provisioned_starting_max, "too many starts at once", pool, starting)
            wanted = [pool for pool in book.pools.values() if pool.want]
            allocated = sum(min(self._allocated(pool), pool.want) for pool in wanted)
            available = sum(min(pool.online, pool.want) for pool in wanted)
            if wanted:
                numbers = (allocated, available)
                require(book.told[:2] == numbers, "told", book.told, "but there are", numbers)
                require((book.told[2] is ProvisionedState.READY) <= book.complete, "READY too early", book)
        for book in self.environments.values():
            dropped = book.pool is not None and book.pool is not self.versions[book.version].pool
            lazy = book.phase in (Phase.IDLE, Phase.PREPARING, Phase.RESETTING)
            require(not (dropped and lazy), "provisioned for nobody", book)

    def converged(self) -> None:
        """Faults have stopped long ago: all that was asked for is there, if there is room and it was not given up."""
        for book in self.allocations.values():
            for version, pool in book.pools.items():
                memory_mib = self.versions[version].memory_mib
                room = any(self._could_take(worker, memory_mib) for worker in self.workers)
                if room and book.told[2] is not ProvisionedState.FAILED:
                    require(self._allocated(pool) == pool.want == pool.online, "not complete", book)
                    self._count("converged")

    def pool_in_flight(self, pool: PoolBook) -> int:
        return sum(other is pool for other in self.pooled.values())

    def claims(self, function: int) -> int:
        """What provisioned concurrency takes from the scope of the function."""
        pools: dict[int, PoolBook] = {id(pool): pool for pool in self.pooled.values()}
        pools |= {id(version.pool): version.pool for version in self.versions.values() if version.pool is not None}
        return sum(
            max(pool.online, self.pool_in_flight(pool))
            for pool in pools.values()
            if self.versions[pool.version].function == function
        )

    # --- admission ----------------------------------------------------------------------------------

    def _invoke(self, event: Invoke, commands: list[AnyCommand]) -> None:
        if not self._answers(event, commands):
            for command in commands:
                self._command(command)
            self._sync()
            expected = self._expect(event)
            require(expected in ("wait", "wait provisioned", "join"), "an Invoke without any answer", event, expected)
            self._wait(event, str(expected))
            return
        cut = len(commands) - 1
        last = commands[cut]
        if isinstance(last, Start):
            while cut > 0 and self._makes_room(commands[cut - 1], last):
                cut -= 1
        for command in commands[:cut]:
            self._command(command)
        if isinstance(last, Start):  # of a due timer, if this request waits for another environment
            orphans = self._orphans(event)
            self._sync()
            before = self._expect(event)
            if orphans or before in ("wait", "wait provisioned"):
                for command in commands[cut:]:
                    self._command(command)
                self._sync()
                expected = self._expect(event)
                require(expected in ("wait", "wait provisioned", "join"), "a start for another", last, expected)
                self._wait(event, str(expected))
                return
        self._sync()
        expected = self._expect(event)
        if isinstance(last, Start):
            require(last.version == event.version, "a start for another version", event, last)
            require(expected == "start", "started an environment", event, "expected", expected)
            memory_mib = self.versions[last.version].memory_mib
            room = any(self._could_take(worker, memory_mib, idle_too=True) for worker in self.workers)
            require(room is (cut == len(commands) - 1), "made room although there was some", commands)
        elif isinstance(last, Dispatch):
            require(last.request == event.request, "dispatched another request", event, last)
            name = "dispatch provisioned" if last.provisioned else "dispatch"
            require(expected == name, "dispatched", event, last, "expected", expected)
        elif isinstance(last, Throttle | Reject):
            require(last == expected, "refused", last, "expected", expected)
        else:
            raise Violation(f"no answer to {event!r}: {commands!r}")
        if isinstance(last, Start | Dispatch):
            pooled = isinstance(last, Dispatch) and last.provisioned
            self._admit(event, isinstance(last, Start), pooled)
        for command in commands[cut:]:
            self._command(command)

    def _orphans(self, event: Invoke) -> bool:
        """Several requests to an environment: do more wait than starting environments have room for?"""
        version = self.versions.get(event.version)
        if version is None or version.slots == 1:
            return False
        waiting, room = self._waiting_room(event.version, self._tenant(event))
        return waiting > room

    def _wait(self, event: Invoke, how: str) -> None:
        if how != "join":
            pool = self.versions[event.version].pool if how == "wait provisioned" else None
            there = self._resetting(event.version, self._tenant(event), pool)
            newest = max(there, key=lambda book: book.reset_order)
            newest.phase = Phase.WAITING
            if pool is not None:
                newest.bound = event.request
        self._admit(event, False, how == "wait provisioned")

    def _answers(self, event: Invoke, commands: list[AnyCommand]) -> bool:
        """Is the last command about this request, and not one that a due timer brought?"""
        if not commands:
            return False
        last = commands[-1]
        if isinstance(last, Start):
            provisioned = last.initialization_type is InitializationType.PROVISIONED_CONCURRENCY
            return last.version == event.version and not provisioned
        return isinstance(last, Dispatch | Throttle | Reject) and last.request == event.request

    def _makes_room(self, command: AnyCommand, start: Start) -> bool:
        if not isinstance(command, Stop) or command.reason is not StopReason.ROOM:
            return False
        book = self.environments.get(command.environment)
        return book is not None and book.worker == start.worker

    def in_flight(self, function: int) -> int:
        """Provisioned included."""
        return sum(self.versions[version].function == function for version in self.open.values())

    def on_demand_in_flight(self, function: int) -> int:
        pooled = sum(self.versions[pool.version].function == function for pool in self.pooled.values())
        return self.in_flight(function) - pooled

    def unreserved_in_flight(self, account: int) -> int:
        count = 0
        for request, version in self.open.items():
            if request in self.pooled:
                continue
            function = self.functions[self.versions[version].function]
            count += function.account == account and (function.removed or function.reserved is None)
        return count

    def unreserved_limit(self, account: int) -> int:
        reserved = sum(
            function.reserved or 0
            for function in self.functions.values()
            if function.account == account and not function.removed
        )
        provisioned = sum(
            self.claims(number)
            for number, function in self.functions.items()
            if function.account == account and (function.removed or function.reserved is None)
        )
        return max(0, self.accounts[account].limit - reserved - provisioned)

    def _rate(self, function: FunctionBook) -> Bucket:
        return self.accounts[function.account].rate if function.rate is None else function.rate

    def _scaling(self, function: FunctionBook) -> Bucket:
        return self.accounts[function.account].scaling if self.classic else function.scaling

    def _expect(self, event: Invoke) -> str | Throttle | Reject:
        """What the rules say about this request."""
        if self.draining:
            return Reject(event.request, RejectReason.DRAINING)
        version = self.versions.get(event.version)
        if version is None or version.retired:
            return Reject(event.request, RejectReason.UNKNOWN_VERSION)
        function = self.functions[version.function]
        tenant, pool = self._tenant(event), version.pool
        provisioned = pool is not None and self._pool_takes(version.function, pool, event.asynchronous)
        if provisioned and self._idle(event.version, tenant, pool):
            return "dispatch provisioned"
        refused = self._refusal(event, version.function)
        if refused is None and (self._joinable(event.version, tenant) or self._idle(event.version, tenant)):
            return "dispatch"
        if provisioned:
            return "wait provisioned"
        if refused is not None:
            return refused
        waiting, room = self._waiting_room(event.version, tenant)
        if version.slots > 1 and waiting < room:
            return "join"
        if self._resetting(event.version, tenant):
            return "wait"
        if not self._scaling(function).has(self.now_ns):
            return Throttle(event.request, ThrottleReason.CONCURRENCY)
        if not any(self._could_take(worker, version.memory_mib) for worker in self.workers):
            return Throttle(event.request, ThrottleReason.CONCURRENCY, capacity=True)
        return "start"

    def _tenant(self, event: Invoke) -> int:
        return event.tenant if self.versions[event.version].tenancy else 0

    def _pool_takes(self, function: int, pool: PoolBook, asynchronous: bool) -> bool:
        reserved = self.functions[function].reserved
        if reserved is not None and self.in_flight(function) >= reserved:
            return False
        busy = self.pool_in_flight(pool) >= pool.online
        return not busy and (asynchronous or pool.rate.has(self.now_ns))

    def _refusal(self, event: Invoke, number: int) -> Throttle | None:
        """Of the scope of on-demand requests."""
        function = self.functions[number]
        if function.reserved is not None:
            if self.on_demand_in_flight(number) >= function.reserved - self.claims(number):
                return Throttle(event.request, ThrottleReason.RESERVED_CONCURRENCY)
        elif self.unreserved_in_flight(function.account) >= self.unreserved_limit(function.account):
            return Throttle(event.request, ThrottleReason.CONCURRENCY)
        if not event.asynchronous and not self._rate(function).has(self.now_ns):
            reserved = function.reserved is not None
            return Throttle(event.request, ThrottleReason.RESERVED_RATE if reserved else ThrottleReason.RATE)
        return None

    def _admit(self, event: Invoke, started: bool, pooled: bool) -> None:
        require(event.request not in self.open, "admitted twice", event)
        require(event.request not in self.answered, "answered before it came", event)
        self.open[event.request] = event.version
        self.undispatched.add(event.request)
        version = self.versions[event.version]
        function = self.functions[version.function]
        self.tenant_of[event.request] = self._tenant(event)
        self.spilled[event.request] = not pooled and version.pool is not None and version.pool.online > 0
        if pooled:
            assert version.pool is not None
            self.pooled[event.request] = version.pool
            self._count("provisioned")
        if not event.asynchronous:
            (version.pool.rate if pooled and version.pool is not None else self._rate(function)).tokens -= 1
        reserved = function.reserved
        if reserved is not None and not function.removed:
            require(self.in_flight(version.function) <= reserved, "more than is reserved", event)
        if started:
            self._scaling(function).tokens -= 1
        self._count("admitted")

    # --- rooms --------------------------------------------------------------------------------------

    def _idle(self, version: int, tenant: int = 0, pool: PoolBook | None = None) -> list[EnvironmentBook]:
        return self._there_is(Phase.IDLE, version, tenant, pool)

    def _resetting(self, version: int, tenant: int = 0, pool: PoolBook | None = None) -> list[EnvironmentBook]:
        """Those that nobody waits for yet."""
        return self._there_is(Phase.RESETTING, version, tenant, pool)

    def _there_is(self, phase: Phase, version: int, tenant: int, pool: PoolBook | None) -> list[EnvironmentBook]:
        return [
            book
            for book in self.environments.values()
            if book.version == version and book.phase is phase and book.tenant == tenant and book.pool is pool
            if len(book.lingering) < self.versions[version].slots
        ]

    def _joinable(self, version: int, tenant: int) -> list[EnvironmentBook]:
        """With several requests to an environment: those that are up and have room."""
        slots = self.versions[version].slots
        return [
            book
            for book in self.environments.values()
            if slots > 1 and book.version == version and book.tenant == tenant
            if book.phase in (Phase.IDLE, Phase.BUSY) and len(book.live) + len(book.lingering) < slots
        ]

    def _waiting_room(self, version: int, tenant: int) -> tuple[int, int]:
        """How many requests wait for environments that are starting, and for how many these have room."""
        there = [book for book in self.environments.values() if book.version == version and book.tenant == tenant]
        room = sum(book.phase is Phase.WAITING for book in there) * self.versions[version].slots
        waiting = sum(
            self.open[request] == version and self.tenant_of[request] == tenant for request in self.undispatched
        )
        return waiting, room

    def _used(self, worker: int, idle_too: bool) -> tuple[int, int]:
        there = [
            self.versions[book.version].memory_mib
            for book in self.environments.values()
            if book.worker == worker and book.phase not in (Phase.STOPPING, Phase.DEAD)
            if idle_too or book.phase is not Phase.IDLE or book.pool is not None
        ]
        return sum(there), len(there)

    def _could_take(self, worker: int, memory_mib: int, idle_too: bool = False) -> bool:
        """Has it room: once its idle ones are stopped, or (idle_too) already while they stand?"""
        memory_used_mib, count = self._used(worker, idle_too)
        book = self.workers[worker]
        return memory_used_mib + memory_mib <= book.memory_mib and count < book.environments_max

    # --- commands -----------------------------------------------------------------------------------

    def _command(self, command: AnyCommand) -> None:
        self._count(type(command).__name__)
        if isinstance(command, Start):
            self._start(command)
        elif isinstance(command, Dispatch):
            self._dispatch(command)
        elif isinstance(command, Complete):
            self._complete(command)
        elif isinstance(command, Throttle | Reject):
            self._count(f"{command.reason}{'-capacity' * getattr(command, 'capacity', False)}")
            require(isinstance(self.event, Invoke), "a refusal out of nowhere", command)
            require(command.request not in self.answered, "answered twice", command)
            require(command.request not in self.open, "refused after it was admitted", command)
            self.answered.add(command.request)
        elif isinstance(command, Reset):
            self._reset(command)
        elif isinstance(command, ProvisionedStatus):
            numbers = (command.allocated, command.available, command.state, command.reason)
            require(command.allocation in self.allocations, "a status of nothing", command)
            book = self.allocations[command.allocation]
            require(book.told != numbers, "told twice", command)
            book.told = numbers
            self._count(f"status {command.state}{f' {command.reason}' if command.reason else ''}")
        else:
            self._stop(command)

    def _there(self, environment: int, command: AnyCommand) -> EnvironmentBook:
        book = self.environments.get(environment)
        if book is None:
            raise Violation(f"a command for an environment that is not there: {command!r}")
        gone = book.phase in (Phase.STOPPING, Phase.DEAD)
        require(not gone, "a command after the end", command, book.phase)
        return book

    def _start(self, command: Start) -> None:
        require(command.environment == self.environment_last + 1, "environment ids count up", command)
        self.environment_last = command.environment
        require(not self.draining, "a start while draining", command)
        require(command.worker in self.workers, "a start on a lost worker", command)
        version = self.versions[command.version]
        require(not version.retired, "a start of a retired version", command)
        require(self._could_take(command.worker, version.memory_mib, idle_too=True), "no room there", command)
        kind = command.initialization_type
        book = EnvironmentBook(command.version, command.worker, kind=kind, tenant=command.tenant)
        require(version.tenancy or not command.tenant, "a tenant of a version without", command)
        if kind is InitializationType.PROVISIONED_CONCURRENCY:
            pool = version.pool
            if pool is None:
                raise Violation(f"nobody has asked for it: {command!r}")
            living = len(self._of(pool, Phase.PREPARING)) + self._allocated(pool)
            require(living < pool.want, "provisioned enough already", command, pool)
            book.pool, book.phase = pool, Phase.PREPARING
        else:
            require(not self._idle(command.version, command.tenant), "a start although one is idle", command)
            require(not self._joinable(command.version, command.tenant), "a start although one has room", command)
            require((kind is InitializationType.SNAP_START) is version.snap_start, "wrong kind", command)
        self.environments[command.environment] = book

    def _dispatch(self, command: Dispatch) -> None:
        book = self._there(command.environment, command)
        require(command.request in self.open, "dispatched a request that is not in flight", command)
        require(command.request in self.undispatched, "dispatched twice", command)
        require(self.open[command.request] == book.version, "dispatched to another version", command)
        require(self.tenant_of[command.request] == book.tenant, "dispatched to another tenant", command, book)
        require(command.provisioned is (book.pool is not None), "wrong provisioned", command)
        if book.pool is None and self.pooled.pop(command.request, None) is not None:
            self.spilled[command.request] = True
        pooled = self.pooled.get(command.request)
        require(pooled is book.pool, "counted elsewhere", command, pooled)
        require(command.spillover is self.spilled[command.request], "wrong spillover", command)
        for name in ("provisioned", "spillover", "cold"):
            if getattr(command, name):
                self._count(f"dispatch {name}")
        if book.tenant:
            self._count("dispatch tenant")
        if book.live:
            self._count("dispatch beside others")
        slots = self.versions[book.version].slots
        told = isinstance(self.event, EnvironmentReady | InitFailed | ResetDone)
        mine = told and getattr(self.event, "environment", 0) == command.environment
        if slots > 1 and not mine:
            there = self._joinable(book.version, book.tenant)
            require(book in there, "dispatched to a full one", command, book)
            fullest = max(len(other.live) + len(other.lingering) for other in there)
            require(len(book.live) + len(book.lingering) == fullest, "not to the fullest", command, book)
        elif slots > 1 and book.phase is Phase.BUSY:
            require(len(book.live) < slots, "dispatched to a full one", command, book)
        elif book.phase is Phase.IDLE:
            idle = self._idle(book.version, book.tenant, book.pool)
            newest = max(idle, key=lambda other: (other.debugged and other.pool is None, other.idle_order))
            require(book is newest, "not the most recently used", command)
        else:
            require(book.phase is Phase.WAITING, "dispatched to one that is", command, book.phase)
            require(
                isinstance(self.event, EnvironmentReady | InitFailed | ResetDone)
                and self.event.environment == command.environment,
                "dispatched to one that has not said it is ready",
                command,
                self.event,
            )
            if isinstance(self.event, InitFailed):
                book.runtime_up = False
        require(command.reinit is not book.runtime_up, "wrong reinit", command)
        cold = book.dispatched == 0 and book.runtime_up and book.pool is None
        require(command.cold is cold, "wrong cold", command)
        deadline_ns = NEVER_NS if book.debugged else self.now_ns + self.versions[book.version].timeout_ns
        require(command.deadline_ns == deadline_ns, "wrong deadline", command)
        if slots > 1:
            book.live[command.request] = command.deadline_ns
        else:
            book.request, book.deadline_ns, book.bound = command.request, command.deadline_ns, None
        book.phase = Phase.BUSY
        book.dispatched += 1
        self.undispatched.discard(command.request)

    def _complete(self, command: Complete) -> None:
        self._count(f"complete {command.outcome}")
        require(command.request in self.open, "completed a request that is not in flight", command)
        require(command.request not in self.answered, "answered twice", command)
        lost = command.outcome is Outcome.ENVIRONMENT_LOST
        restoring = command.outcome is Outcome.RESTORE_TIMEOUT
        if command.request in self.undispatched:
            require(lost or restoring, "ended before it was dispatched", command)
            if restoring:
                snap_start = self.versions[self.open[command.request]].snap_start
                require(snap_start, "a restore of a version without SnapStart", command)
            self.undispatched.discard(command.request)
        else:
            self._complete_dispatched(command, lost)
        self.pooled.pop(command.request, None)
        del self.open[command.request], self.tenant_of[command.request], self.spilled[command.request]
        self.answered.add(command.request)

    def _complete_dispatched(self, command: Complete, lost: bool) -> None:
        book = self.environments.get(command.environment)
        event = self.event
        if lost:
            told = isinstance(event, EnvironmentDied) and event.environment == command.environment
            require(told or isinstance(event, WorkerLost), "lost, says who?", command, event)
            return
        if book is None:
            raise Violation(f"completed by an environment that is not there: {command!r}")
        require(book.phase is Phase.BUSY, "completed by one that is", command, book.phase)
        if self.versions[book.version].slots > 1:
            self._complete_shared(command, book)
            return
        require(book.request == command.request, "completed by another environment", command)
        book.request = None
        if command.outcome is Outcome.TIMEOUT:
            require(self.now_ns >= book.deadline_ns, "timed out too early", command)
            book.phase, book.runtime_up = Phase.RESETTING, False
            self.idle_count += 1
            book.reset_order = self.idle_count
            return
        require(self.now_ns < book.deadline_ns, "not timed out", command)
        require(isinstance(event, InvocationEnded), "ended, says who?", command, event)
        require(event == InvocationEnded(command.environment, command.request, command.outcome), "ended?")
        book.runtime_up = command.outcome in (Outcome.SUCCESS, Outcome.ERROR)
        self._becomes_idle(book)

    def _complete_shared(self, command: Complete, book: EnvironmentBook) -> None:
        """One of several requests."""
        event, request = self.event, command.request
        require(request in book.live, "completed by another environment", command)
        deadline_ns = book.live.pop(request)
        if command.outcome is Outcome.TIMEOUT:
            require(self.now_ns >= deadline_ns, "timed out too early", command)
            book.lingering.add(request)
        else:
            require(self.now_ns < deadline_ns, "not timed out", command)
            ended = isinstance(event, InvocationEnded) and event.environment == command.environment
            require(ended and getattr(event, "outcome", None) is command.outcome, "ended?", command, event)
            crash = command.outcome in (Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR)
            require(crash or getattr(event, "request", 0) == request, "ended another one", command, event)
            book.runtime_up = book.runtime_up or not crash
        if not book.live:
            self._becomes_idle(book)

    def _becomes_idle(self, book: EnvironmentBook) -> None:
        self.idle_count += 1
        book.phase, book.idle_order, book.idle_since_ns = Phase.IDLE, self.idle_count, self.now_ns

    def _reset(self, command: Reset) -> None:
        book = self._there(command.environment, command)
        require(book.phase in (Phase.RESETTING, Phase.WAITING), "reset of one that is", command, book.phase)
        book.runtime_up = False

    def _stop(self, command: Stop) -> None:
        self._count(f"stop {command.reason}")
        book = self._there(command.environment, command)
        require(book.request is None and not book.live, "stopped with a request inside", command)
        on_demand_only = command.reason in (StopReason.IDLE, StopReason.ROOM)
        require(not (on_demand_only and book.pool is not None), "provisioned ones are kept", command)
        match command.reason:
            case StopReason.IDLE:
                require(book.phase is Phase.IDLE, "not idle", command)
                long_ns = self.now_ns - book.idle_since_ns
                require(long_ns >= self.idle_reclaim_ns, "not idle for long enough", command, long_ns)
                oldest = min(
                    other.idle_since_ns
                    for other in self.environments.values()
                    if other.phase is Phase.IDLE and other.pool is None
                )
                require(oldest == book.idle_since_ns, "not the oldest idle one", command)
            case StopReason.ROOM:
                require(book.phase is Phase.IDLE, "not idle", command)
                for other in self.environments.values():
                    if other.phase is Phase.IDLE and other.worker == book.worker and other.pool is None:
                        require(other.idle_since_ns >= book.idle_since_ns, "not the least recently used", command)
            case StopReason.RETIRED:
                require(self.versions[book.version].retired, "not retired", command)
            case StopReason.DRAIN:
                require(self.draining, "not draining", command)
            case StopReason.FAILED:
                crashed = self.versions[book.version].slots > 1 and book.phase in (Phase.IDLE, Phase.BUSY)
                failed = book.phase in (Phase.WAITING, Phase.RESETTING, Phase.PREPARING)
                require(failed or crashed, "not failed", command)
            case StopReason.UNPROVISIONED:
                require(book.pool is not None, "never provisioned", command)
        book.phase = Phase.STOPPING

    # --- facts --------------------------------------------------------------------------------------

    def _fact_before(self, event: AnyEvent) -> None:
        """What the fact itself changes, whatever the scheduler makes of it."""
        match event:
            case AccountSet(account, limit, burst):
                self._account(account, limit, burst)
            case FunctionSet(function, account, reserved):
                self._function(function, account, reserved)
            case FunctionRemoved(function):
                if function in self.functions and not self.functions[function].removed:
                    self.functions[function].removed = True
                    for number, version in self.versions.items():
                        if version.function == function:
                            self._retire(number)
            case VersionSet(version, function, memory_mib, timeout_ns, _, snap_start, _, tenancy, slots):
                if version not in self.versions and not self.functions[function].removed:
                    self.versions[version] = VersionBook(function, memory_mib, timeout_ns, snap_start, tenancy, slots)
            case VersionRetired(version):
                if version in self.versions:
                    self._retire(version)
            case ProvisionedSet():
                self._provision(event)
            case WorkerJoined(worker):
                self.workers[worker] = event
            case Drain():
                self.draining = True
                for version in self.versions:
                    self._drop(version)
            case EnvironmentDebugged(environment):
                self._debug(environment)
            case EnvironmentDied(environment):
                if environment in self.environments:
                    self.environments[environment].phase = Phase.DEAD
            case WorkerLost(worker):
                self.workers.pop(worker, None)
                for book in self.environments.values():
                    if book.worker == worker:
                        book.phase = Phase.DEAD
            case _:
                pass

    def _debug(self, environment: int) -> None:
        """Told before anything else of it: one at a time for each version."""
        book = self.environments.get(environment)
        if book is None or book.phase not in (Phase.WAITING, Phase.PREPARING):
            return
        others = [other for other in self.environments.values() if other.version == book.version and other.debugged]
        if all(other.phase in (Phase.STOPPING, Phase.DEAD) for other in others):
            book.debugged = True
            self._count("debugged")

    def _retire(self, version: int) -> None:
        self._drop(version)
        self.versions[version].retired = True

    def _fact_after(self, event: AnyEvent) -> None:
        match event:
            case InvocationEnded(environment, request):
                book = self.environments.get(environment)
                if book is not None and request in book.lingering:
                    book.lingering.discard(request)
                    book.runtime_up = True  # it answered, though late
            case EnvironmentReady(environment):
                book = self.environments.get(environment)
                if book is not None and book.phase is Phase.PREPARING:
                    self._becomes_idle(book)
            case ResetDone(environment):
                book = self.environments.get(environment)
                if book is not None and book.phase is Phase.RESETTING:
                    self._becomes_idle(book)
            case EnvironmentDied() | WorkerLost():
                for environment, book in list(self.environments.items()):
                    if book.phase is Phase.DEAD:
                        self._unbind(book)
                        del self.environments[environment]
            case _:
                pass
        if self.draining:
            require(
                not any(book.phase is Phase.IDLE for book in self.environments.values()),
                "idle while draining",
            )

    def _account(self, account: int, limit: int, burst: int) -> None:
        per_s = Fraction(500, 60)
        book = self.accounts.get(account)
        if book is None:
            self.accounts[account] = AccountBook(
                limit,
                Bucket(self.now_ns, 10 * limit, Fraction(10 * limit)),
                Bucket(self.now_ns, burst, per_s),
            )
        else:
            book.limit = limit
            book.scaling.resize(self.now_ns, burst, per_s)

    def _resize_unreserved(self, account: int) -> None:
        rate = 10 * self.unreserved_limit(account)
        self.accounts[account].rate.resize(self.now_ns, rate, Fraction(rate))

    def _function(self, function: int, account: int, reserved: int | None) -> None:
        book = self.functions.get(function)
        if book is None:
            book = FunctionBook(account, Bucket(self.now_ns, 1_000, Fraction(100)))
            self.functions[function] = book
        if reserved is None:
            book.rate = None
        elif book.rate is None:
            limit = 10 * max(0, reserved - self.claims(function))
            book.rate = Bucket(self.now_ns, limit, Fraction(limit))
        book.reserved = reserved

    # --- what the scheduler says of itself ----------------------------------------------------------

    def compare(self, statistics: SchedulerStatistics) -> None:
        """The counts that the scheduler shows are those of the books."""
        require(statistics.in_flight == len(self.open), "in flight", statistics.in_flight, len(self.open))
        for function in statistics.functions:
            require(function.in_flight == self.in_flight(function.function), "in flight", function)
        for account in statistics.accounts:
            unreserved = self.unreserved_in_flight(account.account)
            require(account.unreserved_in_flight == unreserved, "unreserved", account, unreserved)
            limit = self.unreserved_limit(account.account)
            require(account.unreserved_max == limit, "unreserved limit", account, limit)
        for version in statistics.versions:
            pool = self.versions[version.version].pool if version.version in self.versions else None
            shown = version.provisioned
            if pool is not None and shown is not None:
                counts = (self._allocated(pool), self.pool_in_flight(pool), pool.want)
                require((shown.allocated, shown.in_flight, shown.wanted) == counts, "provisioned", shown, counts)
        for worker in statistics.workers:
            used = self._used(worker.worker, idle_too=True)
            require((worker.memory_used_mib, worker.environments) == used, "room used", worker, used)

    def at_the_end(self, statistics: SchedulerStatistics, invoked: int) -> None:
        """All is quiet, faults have stopped long ago."""
        self.compare(statistics)
        require(not self.open, "requests that never ended", self.open)
        require(len(self.answered) == invoked, "answers", len(self.answered), "requests", invoked)
        require(statistics.in_flight == 0, "still in flight", statistics.in_flight)
        require(not statistics.environments, "environments left", statistics.environments)
        require(statistics.timers == 0, "timers left", statistics.timers)
        alive = [book for book in self.environments.values() if book.phase is not Phase.STOPPING]
        require(not alive, "environments never stopped", alive)
        require(all(worker.memory_used_mib == 0 for worker in statistics.workers), "memory left")

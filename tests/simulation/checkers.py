"""Watches the scheduler from outside: keeps its own books from facts and commands only, and raises Violation.

For: the simulator, which sends a Tick before configuration and deaths when timers are due, so that the order
of commands and fact is clear; with other facts, the commands of due timers come first. It must not look into
the scheduler; its books are counted from scratch wherever the scheduler counts by steps, and with fractions
where the scheduler uses scaled integers. Outcomes: silence, or a Violation that says what is wrong.

An environment here is *waiting* (started, not yet given its first request), *busy*, *resetting* (without a
request), *idle*,
*stopping* or *dead*.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from fractions import Fraction

from lambent.core.events import (
    AccountSet,
    AnyCommand,
    AnyEvent,
    Complete,
    Dispatch,
    Drain,
    EnvironmentDied,
    EnvironmentReady,
    FunctionRemoved,
    FunctionSet,
    InitFailed,
    InvocationEnded,
    Invoke,
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
from lambent.core.statistics import SchedulerStatistics
from lambent.model.invocation import Outcome, ThrottleReason

NS_PER_S = 1_000_000_000


class Violation(Exception):
    """The scheduler has broken a rule."""


def require(condition: bool, message: str, *details: object) -> None:
    if not condition:
        raise Violation(" ".join([message, *map(repr, details)]))


class Phase(enum.Enum):
    WAITING = "waiting"
    BUSY = "busy"
    RESETTING = "resetting"
    IDLE = "idle"
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass
class Bucket:
    """A token bucket as the textbook has it."""

    at_ns: int
    capacity: int
    per_s: Fraction
    tokens: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = Fraction(self.capacity)

    def refill(self, now_ns: int) -> None:
        grown = self.tokens + self.per_s * (now_ns - self.at_ns) / NS_PER_S
        self.tokens, self.at_ns = min(Fraction(self.capacity), grown), now_ns

    def has(self, now_ns: int) -> bool:
        self.refill(now_ns)
        return self.tokens >= 1

    def resize(self, now_ns: int, capacity: int, per_s: Fraction) -> None:
        self.refill(now_ns)
        self.tokens = max(Fraction(0), self.tokens + capacity - self.capacity)
        self.capacity, self.per_s = capacity, per_s


@dataclass
class AccountBook:
    limit: int
    rate: Bucket
    scaling: Bucket


@dataclass
class FunctionBook:
    account: int
    scaling: Bucket
    reserved: int | None = None
    rate: Bucket | None = None
    removed: bool = False


@dataclass
class VersionBook:
    function: int
    memory_mib: int
    timeout_ns: int
    retired: bool = False


@dataclass
class EnvironmentBook:
    version: int
    worker: int
    phase: Phase = Phase.WAITING
    request: int | None = None
    deadline_ns: int = 0
    dispatched: int = 0
    runtime_up: bool = True
    #: Order in which environments became idle.
    idle_order: int = 0
    reset_order: int = 0
    idle_since_ns: int = 0


class Checker:
    """The books."""

    def __init__(self, classic: bool, idle_reclaim_ns: int) -> None:
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
        self._balance()

    def _count(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1

    def _balance(self) -> None:
        """Each request that waits has one environment that it waits for, and the other way round."""
        waiting: dict[int, int] = {}
        for request in self.undispatched:
            version = self.open[request]
            waiting[version] = waiting.get(version, 0) + 1
        for environment in self.environments.values():
            if environment.phase is Phase.WAITING:
                waiting[environment.version] = waiting.get(environment.version, 0) - 1
        require(not any(waiting.values()), "requests without environments, or the reverse", waiting, self.event)

    # --- admission ----------------------------------------------------------------------------------

    def _invoke(self, event: Invoke, commands: list[AnyCommand]) -> None:
        if not self._answers(event, commands):
            for command in commands:
                self._command(command)
            require(self._expect(event) == "wait", "an Invoke without any answer", event)
            self._wait(event)
            return
        cut = len(commands) - 1
        last = commands[cut]
        if isinstance(last, Start):
            while cut > 0 and self._makes_room(commands[cut - 1], last):
                cut -= 1
        for command in commands[:cut]:
            self._command(command)
        expected = self._expect(event)
        if expected == "wait" and isinstance(last, Start):  # a due timer's, for another request of the version
            for command in commands[cut:]:
                self._command(command)
            self._wait(event)
            return
        if isinstance(last, Start):
            require(last.version == event.version, "a start for another version", event, last)
            require(expected == "start", "started an environment", event, "expected", expected)
            memory_mib = self.versions[last.version].memory_mib
            room = any(self._could_take(worker, memory_mib, idle_too=True) for worker in self.workers)
            require(room is (cut == len(commands) - 1), "made room although there was some", commands)
        elif isinstance(last, Dispatch):
            require(last.request == event.request, "dispatched another request", event, last)
            require(expected == "dispatch", "dispatched", event, "expected", expected)
        elif isinstance(last, Throttle | Reject):
            require(last == expected, "refused", last, "expected", expected)
        else:
            raise Violation(f"no answer to {event!r}: {commands!r}")
        if isinstance(last, Start | Dispatch):
            self._admit(event, isinstance(last, Start))
        for command in commands[cut:]:
            self._command(command)

    def _wait(self, event: Invoke) -> None:
        newest = max(self._resetting(event.version), key=lambda book: book.reset_order)
        newest.phase = Phase.WAITING
        self._admit(event, started=False)

    def _answers(self, event: Invoke, commands: list[AnyCommand]) -> bool:
        """Is the last command about this request, and not one that a due timer brought?"""
        if not commands:
            return False
        last = commands[-1]
        if isinstance(last, Start):
            return last.version == event.version
        return isinstance(last, Dispatch | Throttle | Reject) and last.request == event.request

    def _makes_room(self, command: AnyCommand, start: Start) -> bool:
        if not isinstance(command, Stop) or command.reason is not StopReason.ROOM:
            return False
        book = self.environments.get(command.environment)
        return book is not None and book.worker == start.worker

    def in_flight(self, function: int) -> int:
        return sum(self.versions[version].function == function for version in self.open.values())

    def unreserved_in_flight(self, account: int) -> int:
        count = 0
        for version in self.open.values():
            function = self.functions[self.versions[version].function]
            count += function.account == account and (function.removed or function.reserved is None)
        return count

    def unreserved_limit(self, account: int) -> int:
        reserved = sum(
            function.reserved or 0
            for function in self.functions.values()
            if function.account == account and not function.removed
        )
        return max(0, self.accounts[account].limit - reserved)

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
        if function.reserved is not None:
            if self.in_flight(version.function) >= function.reserved:
                return Throttle(event.request, ThrottleReason.RESERVED_CONCURRENCY)
        elif self.unreserved_in_flight(function.account) >= self.unreserved_limit(function.account):
            return Throttle(event.request, ThrottleReason.CONCURRENCY)
        if not event.asynchronous and not self._rate(function).has(self.now_ns):
            reserved = function.reserved is not None
            return Throttle(event.request, ThrottleReason.RESERVED_RATE if reserved else ThrottleReason.RATE)
        if self._idle(event.version):
            return "dispatch"
        if self._resetting(event.version):
            return "wait"
        if not self._scaling(function).has(self.now_ns):
            return Throttle(event.request, ThrottleReason.CONCURRENCY)
        if not any(self._could_take(worker, version.memory_mib) for worker in self.workers):
            return Throttle(event.request, ThrottleReason.CONCURRENCY, capacity=True)
        return "start"

    def _admit(self, event: Invoke, started: bool) -> None:
        require(event.request not in self.open, "admitted twice", event)
        require(event.request not in self.answered, "answered before it came", event)
        self.open[event.request] = event.version
        self.undispatched.add(event.request)
        function = self.functions[self.versions[event.version].function]
        if not event.asynchronous:
            self._rate(function).tokens -= 1
        if started:
            self._scaling(function).tokens -= 1
        self._count("admitted")

    # --- rooms --------------------------------------------------------------------------------------

    def _idle(self, version: int) -> list[EnvironmentBook]:
        return [
            environment
            for environment in self.environments.values()
            if environment.version == version and environment.phase is Phase.IDLE
        ]

    def _resetting(self, version: int) -> list[EnvironmentBook]:
        """Those that nobody waits for yet."""
        return [
            environment
            for environment in self.environments.values()
            if environment.version == version and environment.phase is Phase.RESETTING
        ]

    def _used(self, worker: int, idle_too: bool) -> tuple[int, int]:
        gone = (Phase.STOPPING, Phase.DEAD) if idle_too else (Phase.STOPPING, Phase.DEAD, Phase.IDLE)
        there = [
            self.versions[environment.version].memory_mib
            for environment in self.environments.values()
            if environment.worker == worker and environment.phase not in gone
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
        require(not self._idle(command.version), "a start although one is idle", command)
        require(self._could_take(command.worker, version.memory_mib, idle_too=True), "no room there", command)
        self.environments[command.environment] = EnvironmentBook(command.version, command.worker)

    def _dispatch(self, command: Dispatch) -> None:
        book = self._there(command.environment, command)
        require(command.request in self.open, "dispatched a request that is not in flight", command)
        require(command.request in self.undispatched, "dispatched twice", command)
        require(self.open[command.request] == book.version, "dispatched to another version", command)
        if book.phase is Phase.IDLE:
            newest = max(self._idle(book.version), key=lambda other: other.idle_order)
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
        require(command.cold is (book.dispatched == 0 and book.runtime_up), "wrong cold", command)
        timeout_ns = self.versions[book.version].timeout_ns
        require(command.deadline_ns == self.now_ns + timeout_ns, "wrong deadline", command)
        book.phase, book.request, book.deadline_ns = Phase.BUSY, command.request, command.deadline_ns
        book.dispatched += 1
        self.undispatched.discard(command.request)

    def _complete(self, command: Complete) -> None:
        self._count(f"complete {command.outcome}")
        require(command.request in self.open, "completed a request that is not in flight", command)
        require(command.request not in self.answered, "answered twice", command)
        lost = command.outcome is Outcome.ENVIRONMENT_LOST
        if command.request in self.undispatched:
            require(lost, "ended before it was dispatched", command)
            self.undispatched.discard(command.request)
        else:
            self._complete_dispatched(command, lost)
        del self.open[command.request]
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
        require(book.request is None, "stopped with a request inside", command)
        match command.reason:
            case StopReason.IDLE:
                require(book.phase is Phase.IDLE, "not idle", command)
                long_ns = self.now_ns - book.idle_since_ns
                require(long_ns >= self.idle_reclaim_ns, "not idle for long enough", command, long_ns)
                oldest = min(other.idle_since_ns for other in self.environments.values() if other.phase is Phase.IDLE)
                require(oldest == book.idle_since_ns, "not the oldest idle one", command)
            case StopReason.ROOM:
                require(book.phase is Phase.IDLE, "not idle", command)
                for other in self.environments.values():
                    if other.phase is Phase.IDLE and other.worker == book.worker:
                        require(other.idle_since_ns >= book.idle_since_ns, "not the least recently used", command)
            case StopReason.RETIRED:
                require(self.versions[book.version].retired, "not retired", command)
            case StopReason.DRAIN:
                require(self.draining, "not draining", command)
            case StopReason.FAILED:
                require(book.phase in (Phase.WAITING, Phase.RESETTING), "not failed", command)
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
                    for version in self.versions.values():
                        version.retired = version.retired or version.function == function
                    self._resize_unreserved(self.functions[function].account)
            case VersionSet(version, function, memory_mib, timeout_ns, _):
                if version not in self.versions and not self.functions[function].removed:
                    self.versions[version] = VersionBook(function, memory_mib, timeout_ns)
            case VersionRetired(version):
                if version in self.versions:
                    self.versions[version].retired = True
            case WorkerJoined(worker):
                self.workers[worker] = event
            case Drain():
                self.draining = True
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

    def _fact_after(self, event: AnyEvent) -> None:
        match event:
            case ResetDone(environment):
                book = self.environments.get(environment)
                if book is not None and book.phase is Phase.RESETTING:
                    self._becomes_idle(book)
            case EnvironmentDied() | WorkerLost():
                for environment, book in list(self.environments.items()):
                    if book.phase is Phase.DEAD:
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
            self._resize_unreserved(account)

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
            book.rate = Bucket(self.now_ns, 10 * reserved, Fraction(10 * reserved))
        else:
            book.rate.resize(self.now_ns, 10 * reserved, Fraction(10 * reserved))
        book.reserved = reserved
        self._resize_unreserved(account)

    # --- what the scheduler says of itself ----------------------------------------------------------

    def compare(self, statistics: SchedulerStatistics) -> None:
        """The counts that the scheduler shows are those of the books."""
        require(statistics.in_flight == len(self.open), "in flight", statistics.in_flight, len(self.open))
        for function in statistics.functions:
            require(function.in_flight == self.in_flight(function.function), "in flight", function)
        for account in statistics.accounts:
            unreserved = self.unreserved_in_flight(account.account)
            require(account.unreserved_in_flight == unreserved, "unreserved", account, unreserved)
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

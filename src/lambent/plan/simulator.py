"""The simulator: the scheduler of the live server, driven in virtual time by a workload and a virtual worker.

For: `lambent plan`. It must not decide anything that core decides, nor look at a clock: the same workload gives the
same result. Outcomes: a `Simulation` whose counts, levels and sketches summary.py turns into a report.

Theory of operation. Three sources say what happens next: the workload (arrivals in order of time), `_pending` (a heap
of what the virtual worker will report: ends of invocations, ends of Init, and, in the `aws` profile, the host's own
doings), and the scheduler's `next_deadline()`. The earliest one is told to the scheduler; at the same instant a
deadline goes first, because a fact at its deadline is late, then what the worker reports, then arrivals: an
environment that ends at t serves the request that arrives at t.

*The virtual worker* is as large as asked for and does what it is told at once: a sandbox takes no time to make (put
that into Init), a Reset and a Stop take none. A request that will be cut off by its timeout puts nothing into the
heap, as the scheduler's deadline ends it; neither does an Init beyond its limit. So `_pending` holds at most what is
in flight (in the `aws` profile also an entry for each environment of the last two hours), however long the workload is.

*The host's doings* (profiles.py): an environment that has reached its life's end dies when it is not busy, and a
function's only environment dies after its own idle time; the scheduler is told EnvironmentDied.

*What is counted*: a request is one invocation, throttled or not. Time is integrated from the first arrival (or 0) to
the horizon. Latency is Init, if it is cold, and duration; a request that is throttled has none. Billed time is
rounded up to 1 ms for each request, Init included (AWS, since August 2025). A cold start is the first request of an
environment; the one after a timeout pays for Init inside its own time, but is not called cold, as in AWS's logs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Final, TextIO

from lambent.core.events import (
    AccountSet,
    AnyCommand,
    Complete,
    Dispatch,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionSet,
    InvocationEnded,
    Invoke,
    Reset,
    ResetDone,
    Start,
    Stop,
    Throttle,
    Tick,
    VersionSet,
    WorkerJoined,
)
from lambent.core.scheduler import Scheduler
from lambent.model.invocation import Outcome, ThrottleReason
from lambent.model.limits import (
    ACCOUNT_CONCURRENCY_DEFAULT,
    CLASSIC_BURST_LARGE,
    INIT_TIMEOUT_S,
    NS_PER_MS,
    NS_PER_S,
)
from lambent.plan.measure import Bin, Levels, Sketch, Timeline
from lambent.plan.profiles import CURRENT, Profile
from lambent.plan.workload import Arrival, PlannedFunction

#: (when_ns, request, environment). A negative "request" is a serial number; the kind of it stands behind.
_Pending = tuple[int, int, int] | tuple[int, int, int, int]

_ACCOUNT: Final = 1
_WORKER: Final = 1
_NEVER_NS: Final = 1 << 62
#: Room without end.
_ROOM: Final = 1 << 60
_READY, _LIFE, _LONE = 1, 2, 3
_SUCCESS: Final = Outcome.SUCCESS
_TICK: Final = Tick()
#: How many arrivals pass between two calls of `progress`.
_PROGRESS_EVERY: Final = 50_000


class FunctionCounts:
    """Sums for one function."""

    __slots__ = ("billed_ms", "cold", "environments", "init_billed_ms", "requests", "throttled")

    def __init__(self) -> None:
        self.requests = 0
        self.cold = 0
        self.throttled = 0
        #: Rounded up for each request, Init included.
        self.billed_ms = 0
        #: The part of it that is Init.
        self.init_billed_ms = 0
        #: Alive now.
        self.environments = 0


class Simulation:
    """One account's day, or as much of it as the workload says. See the head of this module."""

    def __init__(
        self,
        functions: list[PlannedFunction],
        profile: Profile = CURRENT,
        *,
        account_concurrency: int = ACCOUNT_CONCURRENCY_DEFAULT,
        classic_burst: int = CLASSIC_BURST_LARGE,
        environments_max: int = _ROOM,
        memory_mib: int = _ROOM,
        assignments: TextIO | None = None,
    ) -> None:
        #: May grow while the workload runs (a trace names its functions as it goes).
        self.functions = functions
        self.profile = profile
        self.account_concurrency = account_concurrency
        self._assignments = assignments
        self._scheduler = Scheduler(profile.scaling, profile.idle_ns)
        self._handle = self._scheduler.handle
        self._handle(0, AccountSet(_ACCOUNT, account_concurrency, classic_burst))
        self._handle(0, WorkerJoined(_WORKER, memory_mib, environments_max))
        self._pending: list[_Pending] = []
        self._serial = 0
        self._requests = 0
        self._now_ns = 0
        #: Requests that wait for their environment: (arrival, duration, init, function).
        self._waiting: dict[int, Arrival] = {}
        #: Function of each living environment.
        self._function_of: dict[int, int] = {}
        #: The host's view, only kept when the profile needs it: since when each environment is idle.
        self._watches = profile.life_ns is not None or profile.lone_idle_ns is not None
        self._idle_since: dict[int, int] = {}
        self._outlived: set[int] = set()
        self._lone_watched: set[int] = set()

        self.counts: list[FunctionCounts] = []
        self.busy = Levels(0)
        self.environments = Levels(0)
        #: The same, closed at the horizon.
        self.busy_measured, self.environments_measured = self.busy, self.environments
        self.latency = Sketch()
        self.timeline = self.timeline_measured = Timeline(0, NS_PER_S)
        self.start_ns = 0
        self.end_ns = 0
        self.invocations = 0
        self.cold_starts = 0
        self.environments_started = 0
        self.throttles: dict[ThrottleReason, int] = {}
        self.timeouts = 0
        #: The cell of `latency` for the last warm duration: many workloads have only one.
        self._last_duration_ns = -1
        self._last_cell = [0, 0]
        self._bin_base = (0, 0, 0, 0, 0)
        self._bin_peak = 0
        self._define(0)

    # --- the outside --------------------------------------------------------------------------------

    def run(
        self,
        workload: Iterable[Arrival],
        horizon_ns: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Play it. Time is measured from 0 to the horizon; without one, from the first arrival to the last end."""
        first = True
        arrived_ns, countdown = 0, _PROGRESS_EVERY
        if horizon_ns is not None:
            self.timeline = Timeline(0, max(1, horizon_ns // 300))
            first = False
        for arrival in workload:
            if first:
                self._begin(arrival[0])
                first = False
            self._arrive(arrival)
            arrived_ns = arrival[0]
            countdown -= 1
            if countdown == 0:
                countdown = _PROGRESS_EVERY
                if progress is not None:
                    progress(self.invocations, arrived_ns)
        if horizon_ns is None:
            self._now_ns = max(self._now_ns, arrived_ns)
            self._advance(_NEVER_NS)
            self._finish(self._now_ns)
        else:
            self._advance(horizon_ns)
            self._finish(max(horizon_ns, self._now_ns))
            self._advance(_NEVER_NS)
        assert not self._waiting

    @property
    def throttled(self) -> int:
        return sum(self.throttles.values())

    # --- the inner loop -----------------------------------------------------------------------------

    def _arrive(self, arrival: Arrival) -> None:
        """One request. This and _advance() are the hot path: locals, no calls that can be spared."""
        now_ns, duration_ns, init_ns, index = arrival
        pending = self._pending
        deadline_ns = self._scheduler.next_deadline()
        if (pending and pending[0][0] <= now_ns) or (deadline_ns is not None and deadline_ns <= now_ns):
            self._advance(now_ns)
        if now_ns >= self.timeline.end_ns:
            self._close_bins(now_ns)
        if index >= len(self.counts):
            self._define(now_ns)
        request = self._requests = self._requests + 1
        self.invocations += 1
        counts = self.counts[index]
        counts.requests += 1
        commands = self._handle(now_ns, Invoke(request, index))
        command = commands[-1]
        if isinstance(command, Dispatch):
            environment = command.environment
            if command.reinit:
                duration_ns += init_ns
            end_ns = now_ns + duration_ns
            if end_ns < command.deadline_ns:
                heapq.heappush(pending, (end_ns, request, environment))
            else:
                duration_ns = command.deadline_ns - now_ns
            if duration_ns != self._last_duration_ns:
                self._last_duration_ns = duration_ns
                self._last_cell = self.latency.cell(duration_ns)
            cell = self._last_cell
            cell[0] += 1
            cell[1] += duration_ns
            counts.billed_ms += -(-duration_ns // NS_PER_MS)
            if self._watches:
                del self._idle_since[environment]
            if self._assignments is not None:
                self._assignments.write(f"{now_ns / NS_PER_S!r},{environment},0\n")
        elif isinstance(command, Start):
            self._waiting[request] = arrival
            if self._assignments is not None:
                self._assignments.write(f"{now_ns / NS_PER_S!r},{command.environment},1\n")
        else:
            assert isinstance(command, Throttle)
            self._throttled(now_ns, command.reason, counts)
            return
        busy = self.busy
        busy.time_at[busy.level] += now_ns - busy.since_ns
        busy.since_ns = now_ns
        level = busy.level = busy.level + 1
        if level > self._bin_peak:
            self._bin_peak = level
            if level > busy.peak:
                busy.peak = level
                busy.time_at.append(0)
        if request in self._waiting:
            self._carry_out(now_ns, commands)

    def _advance(self, until_ns: int) -> None:
        """All that happens up to and at `until_ns`, but for arrivals. _NEVER_NS: until no request is left."""
        pending, next_deadline, handle, busy = self._pending, self._scheduler.next_deadline, self._handle, self.busy
        time_at, watches = busy.time_at, self._watches
        drain = until_ns == _NEVER_NS
        while not drain or busy.level:
            due_ns = pending[0][0] if pending else _NEVER_NS
            deadline_ns = next_deadline()
            if deadline_ns is not None and deadline_ns <= due_ns:
                if deadline_ns > until_ns:
                    return
                self._close_bins(deadline_ns)
                self._carry_out(deadline_ns, handle(deadline_ns, _TICK))
                continue
            if due_ns > until_ns or not pending:
                return
            entry = heapq.heappop(pending)
            request = entry[1]
            if due_ns >= self.timeline.end_ns:
                self._close_bins(due_ns)
            if request < 0:
                self._report(entry)
                continue
            environment = entry[2]
            commands = handle(due_ns, InvocationEnded(environment, request, _SUCCESS))
            assert len(commands) == 1, "an invocation that ends in time is completed, and that is all"
            time_at[busy.level] += due_ns - busy.since_ns
            busy.since_ns = due_ns
            busy.level -= 1
            self._now_ns = due_ns
            if watches:
                self._rested(due_ns, environment)

    # --- the virtual worker -------------------------------------------------------------------------

    def _carry_out(self, now_ns: int, commands: list[AnyCommand]) -> None:
        """Do what the scheduler says, at once, and tell it so."""
        for command in commands:
            if isinstance(command, Start):
                self._start(now_ns, command)
            elif isinstance(command, Dispatch):
                self._dispatched(now_ns, command)
            elif isinstance(command, Complete):
                # Ends in time are taken care of in _advance(): this is one that the scheduler cut off.
                assert command.outcome is Outcome.TIMEOUT
                self.timeouts += 1
                self.busy.change(now_ns, -1)
                self._now_ns = now_ns
            elif isinstance(command, Reset):
                then = self._handle(now_ns, ResetDone(command.environment))
                self._carry_out(now_ns, then)
                if self._watches and not then:
                    self._rested(now_ns, command.environment)
            else:
                assert isinstance(command, Stop)
                self._gone(now_ns, command.environment)
                self._carry_out(now_ns, self._handle(now_ns, EnvironmentDied(command.environment)))

    def _start(self, now_ns: int, command: Start) -> None:
        environment, index = command.environment, command.version
        self.environments_started += 1
        self._function_of[environment] = index
        self.counts[index].environments += 1
        self.environments.change(now_ns, 1)
        nothing = self._handle(now_ns, EnvironmentStarted(environment))
        assert not nothing
        if self.profile.life_ns is not None:
            self._later(now_ns + self.profile.life_ns, environment, _LIFE)
        # The request that it was started for is the last one that came.
        init_ns = self._waiting[self._requests][2]
        if init_ns == 0:
            self._carry_out(now_ns, self._handle(now_ns, EnvironmentReady(environment)))
        elif init_ns < INIT_TIMEOUT_S * NS_PER_S:
            self._later(now_ns + init_ns, environment, _READY)

    def _dispatched(self, now_ns: int, command: Dispatch) -> None:
        """The first request of an environment, or the first one after a reset: it has waited, or will, for Init."""
        waited = self._waiting.pop(command.request)
        arrival_ns, duration_ns, init_ns, index = waited
        counts = self.counts[index]
        counts.cold += 1
        self.cold_starts += 1
        end_ns = now_ns + duration_ns + (init_ns if command.reinit else 0)
        if end_ns < command.deadline_ns:
            heapq.heappush(self._pending, (end_ns, command.request, command.environment))
        else:
            end_ns = command.deadline_ns
        self.latency.add(end_ns - arrival_ns)
        init_billed_ms = -(-(now_ns - arrival_ns) // NS_PER_MS)
        counts.init_billed_ms += init_billed_ms
        counts.billed_ms += max(init_billed_ms, -(-(end_ns - arrival_ns) // NS_PER_MS))

    def _throttled(self, now_ns: int, reason: ThrottleReason, counts: FunctionCounts) -> None:
        counts.throttled += 1
        self.throttles[reason] = self.throttles.get(reason, 0) + 1
        if self._assignments is not None:
            self._assignments.write(f"{now_ns / NS_PER_S!r},,0\n")

    # --- the host's doings --------------------------------------------------------------------------

    def _later(self, when_ns: int, environment: int, kind: int) -> None:
        self._serial -= 1
        heapq.heappush(self._pending, (when_ns, self._serial, environment, kind))

    def _report(self, entry: _Pending) -> None:
        """Something else than the end of an invocation is due."""
        now_ns, _, environment, kind = entry  # type: ignore[misc]  # a negative request has a kind
        if kind == _READY:
            self._carry_out(now_ns, self._handle(now_ns, EnvironmentReady(environment)))
        elif environment not in self._function_of:
            self._lone_watched.discard(environment)
        elif kind == _LIFE:
            if environment in self._idle_since:
                self._kill(now_ns, environment)
            else:
                self._outlived.add(environment)
        else:
            self._lone_watched.discard(environment)
            self._watch_lone(now_ns, environment)

    def _rested(self, now_ns: int, environment: int) -> None:
        """It has become idle."""
        self._idle_since[environment] = now_ns
        if environment in self._outlived:
            self._kill(now_ns, environment)
        elif self.counts[self._function_of[environment]].environments == 1:
            self._watch_lone(now_ns, environment)

    def _watch_lone(self, now_ns: int, environment: int) -> None:
        """Let it die if it is alone and idle for too long; otherwise look again when that may be so."""
        lone_idle_ns = self.profile.lone_idle_ns
        since_ns = self._idle_since.get(environment)
        if lone_idle_ns is None or since_ns is None or environment in self._lone_watched:
            return
        if self.counts[self._function_of[environment]].environments > 1:
            return
        if since_ns + lone_idle_ns <= now_ns:
            self._kill(now_ns, environment)
        else:
            self._lone_watched.add(environment)
            self._later(since_ns + lone_idle_ns, environment, _LONE)

    def _kill(self, now_ns: int, environment: int) -> None:
        """The host takes an idle environment away."""
        self._gone(now_ns, environment)
        nothing = self._handle(now_ns, EnvironmentDied(environment))
        assert not nothing, "an idle environment dies without a command"

    def _gone(self, now_ns: int, environment: int) -> None:
        index = self._function_of.pop(environment)
        counts = self.counts[index]
        counts.environments -= 1
        self.environments.change(now_ns, -1)
        if self._watches:
            self._idle_since.pop(environment, None)
            self._outlived.discard(environment)
            if counts.environments == 1:
                for other in [e for e in self._idle_since if self._function_of[e] == index]:
                    self._watch_lone(now_ns, other)

    # --- measuring ----------------------------------------------------------------------------------

    def _begin(self, now_ns: int) -> None:
        self.start_ns = self.busy.since_ns = self.environments.since_ns = now_ns
        self.timeline = Timeline(now_ns, NS_PER_S)

    def _close_bins(self, now_ns: int) -> None:
        """Close the bins that ended at or before now."""
        timeline, busy, environments = self.timeline, self.busy, self.environments
        while timeline.end_ns <= now_ns:
            timeline.close(self._bin(timeline.end_ns))
            self._bin_peak = busy.level
        assert environments.since_ns <= now_ns

    def _bin(self, end_ns: int) -> Bin:
        """What happened since the last one."""
        self.busy.settle(end_ns)
        self.environments.settle(end_ns)
        base = self._bin_base
        total = self._bin_base = (
            self.invocations,
            self.cold_starts,
            self.throttled,
            self.busy.integral(),
            self.environments.integral(),
        )
        difference = Bin(*(now - before for now, before in zip(total, base, strict=True)))
        difference.busy_peak = self._bin_peak
        return difference

    def _finish(self, end_ns: int) -> None:
        """The horizon: what is measured over time ends here. What is in flight still runs to its end."""
        self._close_bins(end_ns)
        self.end_ns = end_ns
        self.busy_measured, self.environments_measured = self.busy, self.environments
        opened_ns = self.timeline.end_ns - self.timeline.width_ns
        last = self._bin(end_ns)
        if end_ns > opened_ns or not self.timeline.bins:
            self.timeline.close(last)
        else:
            # It has no length: what happened at its one instant goes to the one before.
            self.timeline.bins[-1] = self.timeline.bins[-1].merged(last)
        self.timeline_measured = self.timeline
        # From here on others are written into.
        self.timeline = Timeline(end_ns, _NEVER_NS)
        self.busy, self.environments = self.busy.successor(), self.environments.successor()

    def _define(self, now_ns: int) -> None:
        """Functions that have been named since the last time."""
        while len(self.counts) < len(self.functions):
            new = len(self.counts)
            function = self.functions[new]
            timeout_ns = function.timeout_ns
            self._handle(now_ns, FunctionSet(new, _ACCOUNT, function.reserved))
            self._handle(now_ns, VersionSet(new, new, function.memory_mib, timeout_ns, INIT_TIMEOUT_S * NS_PER_S))
            self.counts.append(FunctionCounts())

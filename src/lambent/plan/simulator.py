"""The simulator: the scheduler of the live server, driven in virtual time by a workload and a virtual worker.

For: `lambent plan`. It must not decide anything that core decides, nor look at a clock: the same workload gives the
same result. Outcomes: a `Simulation` whose counts, levels and sketches summary.py turns into a report.

Theory of operation. Three sources say what happens next: the workload (arrivals in order of time), `_pending` (a heap
of what the virtual worker will report: ends of invocations, ends of Init; the host's own doings in the `aws` profile;
and the moments at which provisioned concurrency is set anew), and the scheduler's `next_deadline()`. The earliest one
is told to the scheduler; at the same instant a deadline goes first, because a fact at its deadline is late, then what
the worker reports, then arrivals: an environment that ends at t serves the request that arrives at t.

*The virtual worker* is as large as asked for and does what it is told at once: a sandbox takes no time to make (put
that into Init), a Reset and a Stop take none. A request that will be cut off by its timeout puts nothing into the
heap, as the scheduler's deadline ends it; neither does an Init beyond its limit. So `_pending` holds at most what is
in flight (in the `aws` profile also an entry for each environment of the last two hours), however long the workload is.

*Provisioned concurrency* is asked for before the workload begins, and the workload waits until it is there: its
time 0 is then `offset_ns` on the scheduler's clock. Later changes, by schedule or target tracking
(provisioning.py), take the time that they take. Utilisation is sampled at each request of the function, as Lambda's
metric is.

*The host's doings* (profiles.py): an environment that has reached its life's end dies when it is not busy, and a
function's only environment dies after its own idle time; the scheduler is told EnvironmentDied. The `aws` profile's
lifetimes are those of environments on demand: provisioned ones stay.

*What is counted*: a request is one invocation, throttled or not. Time is integrated from the first arrival (or 0) to
the horizon. Latency is Init (or restore), if it is cold, and duration; a request that is throttled has none. Billed
time is rounded up to 1 ms for each request, Init included (AWS, since August 2025). A cold start is the first request
of an environment on demand; the one after a timeout pays for Init inside its own time, but is not called cold, as in
AWS's logs.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TextIO

from lambent.core.events import (
    AccountSet,
    AnyCommand,
    AnyEvent,
    Complete,
    Dispatch,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionSet,
    InvocationEnded,
    Invoke,
    ProvisionedReason,
    ProvisionedSet,
    ProvisionedState,
    ProvisionedStatus,
    Reset,
    ResetDone,
    Start,
    Stop,
    StopReason,
    Throttle,
    Tick,
    VersionSet,
    WorkerJoined,
)
from lambent.core.scheduler import Scheduler
from lambent.model.invocation import InitializationType, Outcome, ThrottleReason
from lambent.model.limits import (
    ACCOUNT_CONCURRENCY_DEFAULT,
    CLASSIC_BURST_LARGE,
    INIT_TIMEOUT_S,
    LONG_INIT_TIMEOUT_MAX_S,
    NS_PER_MS,
    NS_PER_S,
)
from lambent.plan.measure import Bin, Levels, Sketch, Timeline
from lambent.plan.profiles import CURRENT, Profile
from lambent.plan.provisioning import MINUTE_S, Provisioning, Tracker
from lambent.plan.workload import Arrival, PlannedFunction

#: (when_ns, request, environment). A negative "request" is a serial number; the kind of it stands behind, and what kind
#: _MINUTE and _SCHEDULED are about is a function.
_Pending = tuple[int, int, int] | tuple[int, int, int, int]

_ACCOUNT: Final = 1
_WORKER: Final = 1
_NEVER_NS: Final = 1 << 62
#: Room without end.
_ROOM: Final = 1 << 60
_READY, _LIFE, _LONE, _MINUTE, _SCHEDULED = 1, 2, 3, 4, 5
#: Later, the scheduler's own limits have ended it.
_INIT_MAX_NS: Final = INIT_TIMEOUT_S * NS_PER_S
_PROVISIONED_INIT_MAX_NS: Final = LONG_INIT_TIMEOUT_MAX_S * NS_PER_S
#: The workload waits no longer for provisioned concurrency.
_SETTLE_MAX_NS: Final = 3_600 * NS_PER_S
_SUCCESS: Final = Outcome.SUCCESS
_TICK: Final = Tick()
#: How many arrivals pass between two calls of `progress`.
_PROGRESS_EVERY: Final = 50_000


class Measured(NamedTuple):
    """Levels over the time that is measured."""

    busy: Levels
    initialising: Levels
    environments: Levels
    provisioned: Levels
    provisioned_busy: Levels
    wanted: Levels


class FunctionCounts:
    """Sums for one function."""

    __slots__ = (
        "billed_ms",
        "cold",
        "environments",
        "environments_peak",
        "init_billed_ms",
        "provisioned",
        "provisioned_available",
        "provisioned_billed_ms",
        "provisioned_busy",
        "requests",
        "restores",
        "sampled",
        "sampled_utilisation",
        "spillovers",
        "throttled",
        "tracker",
        "wanted",
        "wanted_ns",
        "wanted_since_ns",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.cold = 0
        self.throttled = 0
        #: On demand: rounded up for each request, Init and restores included.
        self.billed_ms = 0
        #: The part of it that is Init or restore.
        self.init_billed_ms = 0
        #: Alive now, provisioned ones included.
        self.environments = 0
        self.environments_peak = 0
        self.restores = 0
        #: Requests in provisioned environments, and on demand because those were all busy.
        self.provisioned = 0
        self.spillovers = 0
        #: In provisioned environments, their Init included.
        self.provisioned_billed_ms = 0
        self.provisioned_busy = 0
        #: What the scheduler said last.
        self.provisioned_available = 0
        #: Asked for; its sum over time up to wanted_since_ns.
        self.wanted = 0
        self.wanted_ns = 0
        self.wanted_since_ns = 0
        #: Of this minute, for target tracking.
        self.sampled = 0
        self.sampled_utilisation = 0.0
        self.tracker: Tracker | None = None

    def want(self, now_ns: int, count: int) -> None:
        """From now on so many provisioned environments are asked for, and paid."""
        assert now_ns >= self.wanted_since_ns
        self.wanted_ns += self.wanted * (now_ns - self.wanted_since_ns)
        self.wanted_since_ns = now_ns
        self.wanted = count


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
        self._scheduler = Scheduler(
            profile.scaling, profile.idle_ns, provisioned_starting_max=profile.provisioned_starting_max
        )
        self._handle = self._scheduler.handle
        self._handle(0, AccountSet(_ACCOUNT, account_concurrency, classic_burst))
        self._handle(0, WorkerJoined(_WORKER, memory_mib, environments_max))
        self._pending: list[_Pending] = []
        self._serial = 0
        #: Ids of requests; so also how many there were.
        self._requests = 0
        self._now_ns = 0
        #: Requests that wait for their environment: (arrival, duration, init, function).
        self._waiting: dict[int, Arrival] = {}
        #: Function of each living environment, and of those of them that are provisioned.
        self._function_of: dict[int, int] = {}
        self._provisioned: dict[int, int] = {}
        #: Functions whose provisioned concurrency is not complete.
        self._allocating: set[int] = set()
        #: The host's view, only kept when the profile needs it: since when each environment is idle.
        self._provisions = False
        self._watches = profile.life_ns is not None or profile.lone_idle_ns is not None
        self._idle_since: dict[int, int] = {}
        self._outlived: set[int] = set()
        self._lone_watched: set[int] = set()

        self.counts: list[FunctionCounts] = []
        #: Over time: requests in flight, those of them that wait for Init, environments; provisioned environments,
        #: those of them with a request, and how many are asked for.
        self.busy, self.initialising, self.environments = Levels(0), Levels(0), Levels(0)
        self.provisioned, self.provisioned_busy, self.wanted = Levels(0), Levels(0), Levels(0)
        #: The same, closed at the horizon.
        self.measured = Measured(*self._levels())
        self.latency = Sketch()
        #: Nothing is measured before _begin().
        self.timeline = self.timeline_measured = Timeline(0, _NEVER_NS)
        #: When the workload began.
        self.offset_ns = 0
        self.start_ns = 0
        self.end_ns = 0
        self.cold_starts = 0
        self.environments_started = 0
        #: Idle environments that went to make room.
        self.evictions = 0
        self.throttles: dict[ThrottleReason, int] = {}
        #: Those of them that no limit, but the workers' memory refused.
        self.throttles_no_room = 0
        self.timeouts = 0
        self.restore_timeouts = 0
        #: The cell of `latency` for the last warm duration: many workloads have only one.
        self._last_duration_ns = -1
        self._last_cell = [0, 0]
        self._bin_base = (0,) * 10
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
        offset_ns = self._settle_in()
        if horizon_ns is not None:
            self._begin(offset_ns, max(1, horizon_ns // 300))
            horizon_ns += offset_ns
        arrived_ns = self._play(workload, horizon_ns is None, progress)
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
    def invocations(self) -> int:
        return self._requests

    @property
    def throttled(self) -> int:
        return sum(self.throttles.values())

    @property
    def busy_measured(self) -> Levels:
        return self.measured.busy

    @property
    def environments_measured(self) -> Levels:
        return self.measured.environments

    # --- the inner loop -----------------------------------------------------------------------------

    def _play(self, workload: Iterable[Arrival], begin: bool, progress: Callable[[int, int], None] | None) -> int:
        """All arrivals; when the last one came. This and _advance() are the hot path: locals, no calls that can be
        spared."""
        offset_ns, pending, handle, all_counts = self.offset_ns, self._pending, self._handle, self.counts
        busy, latency, assignments, watches = self.busy, self.latency, self._assignments, self._watches
        next_deadline, push, pop = self._scheduler.next_deadline, heapq.heappush, heapq.heappop
        time_at, provisioned = self.busy.time_at, self._provisioned
        now_ns, countdown, defined, bin_end_ns = offset_ns, _PROGRESS_EVERY, len(all_counts), self.timeline.end_ns
        for arrival in workload:
            arrival_ns, duration_ns, init_ns, index = arrival
            now_ns = arrival_ns + offset_ns
            if begin:
                self._advance(now_ns)
                self._begin(now_ns, NS_PER_S)
                begin = False
                bin_end_ns = self.timeline.end_ns
            # What _advance() does, for the one case that is nearly all: an invocation on demand ends, and no more.
            if (deadline_ns := next_deadline()) is None:
                deadline_ns = _NEVER_NS
            while pending:
                due_ns, ended, environment = pending[0][:3]
                if due_ns > now_ns:
                    break
                if deadline_ns <= due_ns or ended < 0 or due_ns >= bin_end_ns or watches or provisioned:
                    self._advance(now_ns)
                    deadline_ns = _NEVER_NS
                    bin_end_ns = self.timeline.end_ns
                    break
                pop(pending)
                commands = handle(due_ns, InvocationEnded(environment, ended, _SUCCESS))
                assert len(commands) == 1, "without provisioned concurrency it is completed, and that is all"
                time_at[busy.level] += due_ns - busy.since_ns
                busy.since_ns = due_ns
                busy.level -= 1
                if (deadline_ns := next_deadline()) is None:
                    deadline_ns = _NEVER_NS
            if deadline_ns <= now_ns:
                self._advance(now_ns)
            if now_ns >= bin_end_ns:
                self._close_bins(now_ns)
                bin_end_ns = self.timeline.end_ns
            if index >= defined:
                self._define(now_ns)
                defined = len(all_counts)
            request = self._requests = self._requests + 1
            counts = all_counts[index]
            counts.requests += 1
            countdown -= 1
            if countdown == 0:
                countdown = _PROGRESS_EVERY
                if progress is not None:
                    progress(request, arrival_ns)
            commands = handle(now_ns, Invoke(request, index))
            command = commands[-1]
            if type(command) is Dispatch:
                environment = command.environment
                if command.reinit:
                    duration_ns += self._cold_ns(index, init_ns)
                end_ns = now_ns + duration_ns
                if end_ns < command.deadline_ns:
                    push(pending, (end_ns, request, environment))
                else:
                    duration_ns = command.deadline_ns - now_ns
                if duration_ns != self._last_duration_ns:
                    self._last_duration_ns = duration_ns
                    self._last_cell = latency.cell(duration_ns)
                cell = self._last_cell
                cell[0] += 1
                cell[1] += duration_ns
                if command.provisioned:
                    self._took_provisioned(now_ns, counts, duration_ns)
                else:
                    counts.billed_ms += -(-duration_ns // NS_PER_MS)
                    if command.spillover:
                        counts.spillovers += 1
                if watches:
                    self._idle_since.pop(environment, None)
                if assignments is not None:
                    assignments.write(f"{arrival_ns / NS_PER_S!r},{environment},0\n")
                level = busy.level
                time_at[level] += now_ns - busy.since_ns
                busy.since_ns = now_ns
                level += 1
                busy.level = level
                if level > self._bin_peak:
                    self._bin_peak = level
                    if level > busy.peak:
                        busy.peak = level
                        time_at.append(0)
            elif type(command) is Start:
                self._waiting[request] = (now_ns, duration_ns, init_ns, index)
                if assignments is not None:
                    assignments.write(f"{arrival_ns / NS_PER_S!r},{command.environment},1\n")
                busy.change(now_ns, 1)
                self._bin_peak = max(self._bin_peak, busy.level)
                self._carry_out(now_ns, commands)
            else:
                assert isinstance(command, Throttle)
                self._throttled(command, counts)
                if assignments is not None:
                    assignments.write(f"{arrival_ns / NS_PER_S!r},,0\n")
            if provisioned and counts.tracker is not None and counts.provisioned_available:
                counts.sampled += 1
                counts.sampled_utilisation += counts.provisioned_busy / counts.provisioned_available
        return now_ns

    def _advance(self, until_ns: int) -> None:
        """All that happens up to and at `until_ns`, but for arrivals. _NEVER_NS: until no request is left."""
        pending, next_deadline, handle, busy = self._pending, self._scheduler.next_deadline, self._handle, self.busy
        time_at, watches, provisioned = busy.time_at, self._watches, self._provisioned
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
            time_at[busy.level] += due_ns - busy.since_ns
            busy.since_ns = due_ns
            busy.level -= 1
            self._now_ns = due_ns
            if provisioned and environment in provisioned:
                self._left_provisioned(due_ns, environment)
            if len(commands) > 1:
                # It was one too many, or there is something to tell about provisioned concurrency.
                assert type(commands[0]) is Complete
                self._carry_out(due_ns, commands[1:])
            elif watches:
                self._rested(due_ns, environment)

    # --- the virtual worker -------------------------------------------------------------------------

    def _carry_out(self, now_ns: int, commands: list[AnyCommand]) -> None:
        """Do what the scheduler says, at once, and tell it so, as the live driver does: command by command, then the
        facts that came of them."""
        facts: collections.deque[AnyEvent] = collections.deque()
        while True:
            for command in commands:
                if isinstance(command, Start):
                    self._start(now_ns, command, facts)
                elif isinstance(command, Dispatch):
                    self._dispatched(now_ns, command)
                elif isinstance(command, Complete):
                    self._cut_off(now_ns, command)
                elif isinstance(command, Reset):
                    facts.append(ResetDone(command.environment))
                elif isinstance(command, ProvisionedStatus):
                    self._provisioned_told(command)
                else:
                    assert isinstance(command, Stop)
                    if command.environment not in self._function_of:
                        # The host has just taken it: what was stopped before it had left it alone.
                        continue
                    self.evictions += command.reason is StopReason.ROOM
                    self._gone(now_ns, command.environment)
                    facts.append(EnvironmentDied(command.environment))
            if not facts:
                return
            fact = facts.popleft()
            commands = self._handle(now_ns, fact)
            if self._watches and not commands and isinstance(fact, ResetDone):
                self._rested(now_ns, fact.environment)

    def _start(self, now_ns: int, command: Start, facts: collections.deque[AnyEvent]) -> None:
        environment, index = command.environment, command.version
        self.environments_started += 1
        self._function_of[environment] = index
        counts = self.counts[index]
        counts.environments += 1
        counts.environments_peak = max(counts.environments_peak, counts.environments)
        self.environments.change(now_ns, 1)
        facts.append(EnvironmentStarted(environment))
        if command.initialization_type is InitializationType.PROVISIONED_CONCURRENCY:
            self._provisioned[environment] = index
            self.provisioned.change(now_ns, 1)
            init_ns, limit_ns = self.functions[index].init_ns, _PROVISIONED_INIT_MAX_NS
            counts.provisioned_billed_ms += -(-init_ns // NS_PER_MS)
        else:
            self.initialising.change(now_ns, 1)
            if self.profile.life_ns is not None:
                self._later(now_ns + self.profile.life_ns, environment, _LIFE)
            # The request that it was started for is the last one that came.
            init_ns = self._cold_ns(index, self._waiting[self._requests][2])
            limit_ns = _INIT_MAX_NS
            if command.initialization_type is InitializationType.SNAP_START:
                counts.restores += 1
        if init_ns == 0:
            facts.append(EnvironmentReady(environment))
        elif init_ns < limit_ns:
            self._later(now_ns + init_ns, environment, _READY)

    def _cold_ns(self, index: int, init_ns: int) -> int:
        """Until a new runtime process is ready."""
        function = self.functions[index]
        return function.restore_ns if function.snap_start else init_ns

    def _dispatched(self, now_ns: int, command: Dispatch) -> None:
        """The first request of an environment, or the first one after a reset: it has waited, or will, for Init."""
        waited = self._waiting.pop(command.request)
        arrival_ns, duration_ns, init_ns, index = waited
        counts = self.counts[index]
        counts.cold += 1
        counts.spillovers += command.spillover
        self.cold_starts += 1
        self.initialising.change(now_ns, -1)
        end_ns = now_ns + duration_ns + (self._cold_ns(index, init_ns) if command.reinit else 0)
        if end_ns < command.deadline_ns:
            heapq.heappush(self._pending, (end_ns, command.request, command.environment))
        else:
            end_ns = command.deadline_ns
        self.latency.add(end_ns - arrival_ns)
        init_billed_ms = -(-(now_ns - arrival_ns) // NS_PER_MS)
        counts.init_billed_ms += init_billed_ms
        counts.billed_ms += max(init_billed_ms, -(-(end_ns - arrival_ns) // NS_PER_MS))

    def _cut_off(self, now_ns: int, command: Complete) -> None:
        """Ends in time are taken care of in _advance(): this is one that the scheduler cut off."""
        self.busy.change(now_ns, -1)
        self._now_ns = now_ns
        if command.outcome is Outcome.RESTORE_TIMEOUT:
            arrival_ns, _, _, index = self._waiting.pop(command.request)
            self.restore_timeouts += 1
            self.initialising.change(now_ns, -1)
            self.latency.add(now_ns - arrival_ns)
            self.counts[index].billed_ms += -(-(now_ns - arrival_ns) // NS_PER_MS)
            return
        assert command.outcome is Outcome.TIMEOUT
        self.timeouts += 1
        if command.environment in self._provisioned:
            self._left_provisioned(now_ns, command.environment)

    def _throttled(self, command: Throttle, counts: FunctionCounts) -> None:
        counts.throttled += 1
        self.throttles[command.reason] = self.throttles.get(command.reason, 0) + 1
        self.throttles_no_room += command.capacity

    # --- provisioned concurrency --------------------------------------------------------------------

    def _settle_in(self) -> int:
        """Let provisioned concurrency come up before the workload begins; when that is."""
        for index, function in enumerate(self.functions):
            assert index < len(self.counts)
            if function.provisioning is not None:
                self._provision(0, index, function.provisioning.wanted(0))
        now_ns = 0
        while self._allocating:
            due_ns = self._pending[0][0] if self._pending else _NEVER_NS
            deadline_ns = self._scheduler.next_deadline()
            now_ns = min(due_ns, _NEVER_NS if deadline_ns is None else deadline_ns)
            if now_ns > _SETTLE_MAX_NS:
                now_ns = _SETTLE_MAX_NS
                break
            self._advance(now_ns)
        self.offset_ns = self._now_ns = now_ns
        for index, function in enumerate(self.functions):
            if function.provisioning is not None:
                self._watch_provisioning(now_ns, index, function.provisioning)
        return now_ns

    def _watch_provisioning(self, now_ns: int, index: int, provisioning: Provisioning) -> None:
        """From now on its schedule and its target hold."""
        if provisioning.target is not None:
            self.counts[index].tracker = Tracker(provisioning)
            self._later(now_ns + MINUTE_S * NS_PER_S, index, _MINUTE)
        self._schedule_next(now_ns, index, provisioning)

    def _schedule_next(self, now_ns: int, index: int, provisioning: Provisioning) -> None:
        change_s = provisioning.next_change_s((now_ns - self.offset_ns) // NS_PER_S)
        if change_s is not None:
            self._later(self.offset_ns + change_s * NS_PER_S, index, _SCHEDULED)

    def _provision(self, now_ns: int, index: int, count: int) -> None:
        """Ask for so many."""
        counts = self.counts[index]
        if count == counts.wanted:
            return
        self.wanted.change(now_ns, count - counts.wanted)
        counts.want(now_ns, count)
        if count:
            self._allocating.add(index)
        else:
            # The scheduler forgets it, and says nothing more.
            self._allocating.discard(index)
            counts.provisioned_available = 0
        self._carry_out(now_ns, self._handle(now_ns, ProvisionedSet(index, ((index, count),) if count else ())))

    def _provisioned_told(self, command: ProvisionedStatus) -> None:
        self.counts[command.allocation].provisioned_available = command.available
        waits = command.state is ProvisionedState.IN_PROGRESS and command.reason is not ProvisionedReason.NO_ROOM
        if waits:
            self._allocating.add(command.allocation)
        else:
            self._allocating.discard(command.allocation)

    def _scheduled(self, now_ns: int, index: int) -> None:
        """The schedule names another count, or with a target another minimum."""
        provisioning, counts = self.functions[index].provisioning, self.counts[index]
        assert provisioning is not None
        wanted = provisioning.wanted((now_ns - self.offset_ns) // NS_PER_S)
        self._provision(now_ns, index, wanted if counts.tracker is None else max(wanted, counts.wanted))
        self._schedule_next(now_ns, index, provisioning)

    def _minute(self, now_ns: int, index: int) -> None:
        """Target tracking looks at the minute that is over."""
        provisioning, counts = self.functions[index].provisioning, self.counts[index]
        assert provisioning is not None
        assert counts.tracker is not None
        utilisation = counts.sampled_utilisation / counts.sampled if counts.sampled else None
        counts.sampled, counts.sampled_utilisation = 0, 0.0
        least = provisioning.wanted((now_ns - self.offset_ns) // NS_PER_S) if provisioning.schedule else 0
        self._provision(now_ns, index, counts.tracker.minute(now_ns // NS_PER_S, counts.wanted, least, utilisation))
        self._later(now_ns + MINUTE_S * NS_PER_S, index, _MINUTE)

    def _took_provisioned(self, now_ns: int, counts: FunctionCounts, duration_ns: int) -> None:
        counts.provisioned += 1
        counts.provisioned_busy += 1
        counts.provisioned_billed_ms += -(-duration_ns // NS_PER_MS)
        self.provisioned_busy.change(now_ns, 1)

    def _left_provisioned(self, now_ns: int, environment: int) -> None:
        self.counts[self._provisioned[environment]].provisioned_busy -= 1
        self.provisioned_busy.change(now_ns, -1)

    # --- the host's doings --------------------------------------------------------------------------

    def _later(self, when_ns: int, subject: int, kind: int) -> None:
        self._serial -= 1
        heapq.heappush(self._pending, (when_ns, self._serial, subject, kind))

    def _report(self, entry: _Pending) -> None:
        """Something else than the end of an invocation is due."""
        now_ns, _, subject, kind = entry  # type: ignore[misc]  # a negative request has a kind
        if kind == _READY:
            self._carry_out(now_ns, self._handle(now_ns, EnvironmentReady(subject)))
        elif kind == _SCHEDULED:
            self._scheduled(now_ns, subject)
        elif kind == _MINUTE:
            self._minute(now_ns, subject)
        elif subject not in self._function_of:
            self._lone_watched.discard(subject)
        elif kind == _LIFE:
            if subject in self._idle_since:
                self._kill(now_ns, subject)
            else:
                self._outlived.add(subject)
        else:
            self._lone_watched.discard(subject)
            self._watch_lone(now_ns, subject)

    def _rested(self, now_ns: int, environment: int) -> None:
        """It has become idle."""
        if environment in self._provisioned:
            return
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
        if self._provisioned.pop(environment, None) is not None:
            self.provisioned.change(now_ns, -1)
        if self._watches:
            self._idle_since.pop(environment, None)
            self._outlived.discard(environment)
            if counts.environments == 1:
                for other in [e for e in self._idle_since if self._function_of[e] == index]:
                    self._watch_lone(now_ns, other)

    # --- measuring ----------------------------------------------------------------------------------

    def _levels(self) -> tuple[Levels, Levels, Levels, Levels, Levels, Levels]:
        return (
            self.busy,
            self.initialising,
            self.environments,
            self.provisioned,
            self.provisioned_busy,
            self.wanted,
        )

    def _begin(self, now_ns: int, width_ns: int) -> None:
        """Measure from now on."""
        for level in self._levels():
            level.begin(now_ns)
        for counts in self.counts:
            counts.wanted_ns, counts.wanted_since_ns = 0, now_ns
        self.start_ns = now_ns
        self.timeline = Timeline(now_ns, width_ns)

    def _close_bins(self, now_ns: int) -> None:
        """Close the bins that ended at or before now."""
        timeline, busy, environments = self.timeline, self.busy, self.environments
        while timeline.end_ns <= now_ns:
            timeline.close(self._bin(timeline.end_ns))
            self._bin_peak = busy.level
        assert environments.since_ns <= now_ns

    def _bin(self, end_ns: int) -> Bin:
        """What happened since the last one."""
        for level in self._levels():
            level.settle(end_ns)
        base = self._bin_base
        total = self._bin_base = (
            self._requests,
            self.cold_starts,
            self.throttled,
            sum(counts.spillovers for counts in self.counts) if self._provisions else 0,
            self.busy.integral(),
            self.initialising.integral(),
            self.environments.integral(),
            self.wanted.integral(),
            self.provisioned.integral(),
            self.provisioned_busy.integral(),
        )
        difference = Bin(*(now - before for now, before in zip(total, base, strict=True)))
        difference.busy_peak = self._bin_peak
        return difference

    def _finish(self, end_ns: int) -> None:
        """The horizon: what is measured over time ends here. What is in flight still runs to its end."""
        self._close_bins(end_ns)
        self.end_ns = end_ns
        for counts in self.counts:
            counts.want(end_ns, counts.wanted)
        self.measured = Measured(*self._levels())
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
        (
            self.busy,
            self.initialising,
            self.environments,
            self.provisioned,
            self.provisioned_busy,
            self.wanted,
        ) = (level.successor() for level in self._levels())

    def _define(self, now_ns: int) -> None:
        """Functions that have been named since the last time."""
        while len(self.counts) < len(self.functions):
            new = len(self.counts)
            function = self.functions[new]
            self._handle(now_ns, FunctionSet(new, _ACCOUNT, function.reserved))
            self._handle(
                now_ns,
                VersionSet(
                    new, new, function.memory_mib, function.timeout_ns, _INIT_MAX_NS, snap_start=function.snap_start
                ),
            )
            counts = FunctionCounts()
            counts.wanted_since_ns = now_ns
            self.counts.append(counts)
            if function.provisioning is not None:
                self._provisions = True
                if now_ns > self.offset_ns or self.invocations:
                    # It comes while the workload runs.
                    second = (now_ns - self.offset_ns) // NS_PER_S
                    self._provision(now_ns, new, function.provisioning.wanted(second))
                    self._watch_provisioning(now_ns, new, function.provisioning)

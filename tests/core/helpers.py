"""A scheduler with one account, one function, one version and one worker, and short words for facts."""

from __future__ import annotations

from typing import Any

from lambent.core.events import (
    AccountSet,
    AnyCommand,
    AnyEvent,
    Dispatch,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionSet,
    InvocationEnded,
    Invoke,
    Start,
    Tick,
    VersionSet,
    WorkerJoined,
)
from lambent.core.recording import encode
from lambent.core.scheduler import ScalingProfile, Scheduler
from lambent.model.invocation import Outcome

MS = 1_000_000
S = 1_000 * MS
ACCOUNT, FUNCTION, VERSION, WORKER = 1, 10, 100, 1_000
TIMEOUT_NS, INIT_TIMEOUT_NS, IDLE_NS = 3 * S, 10 * S, 600 * S


class Bench:
    """The scheduler under test and a clock."""

    def __init__(
        self,
        concurrency: int = 1_000,
        reserved: int | None = None,
        profile: ScalingProfile = ScalingProfile.CURRENT,
        classic_burst: int = 3_000,
        memory_mib: int = 1_000_000,
        environments_max: int = 10_000,
        **limits: Any,
    ) -> None:
        self.scheduler = Scheduler(profile, limits.pop("idle_reclaim_ns", IDLE_NS), **limits)
        self.now_ns = 0
        self.requests = 0
        self.frames: list[bytes] = []
        assert self.tell(AccountSet(ACCOUNT, concurrency, classic_burst)) == []
        assert self.tell(FunctionSet(FUNCTION, ACCOUNT, reserved)) == []
        assert self.tell(VersionSet(VERSION, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS)) == []
        if environments_max:
            assert self.tell(WorkerJoined(WORKER, memory_mib, environments_max)) == []

    def tell(self, event: AnyEvent, after_ns: int = 0) -> list[AnyCommand]:
        self.now_ns += after_ns
        commands = self.scheduler.handle(self.now_ns, event)
        self.frames.append(encode(self.now_ns, event, commands))
        return commands

    def one(self, event: AnyEvent, after_ns: int = 0) -> AnyCommand:
        commands = self.tell(event, after_ns)
        assert len(commands) == 1, commands
        return commands[0]

    def tick(self, after_ns: int = 0) -> list[AnyCommand]:
        return self.tell(Tick(), after_ns)

    def invoke(self, version: int = VERSION, asynchronous: bool = False) -> list[AnyCommand]:
        self.requests += 1
        return self.tell(Invoke(self.requests, version, asynchronous))

    def one_invoke(self) -> AnyCommand:
        commands = self.invoke()
        assert len(commands) == 1, commands
        return commands[0]

    def start(self, version: int = VERSION) -> Start:
        """An Invoke that needs a new environment."""
        command = self.invoke(version)[-1]
        assert isinstance(command, Start)
        return command

    def dispatch(self, version: int = VERSION) -> Dispatch:
        """An Invoke, and an environment made for it where there is none."""
        command = self.invoke(version)[-1]
        if isinstance(command, Start):
            assert self.tell(EnvironmentStarted(command.environment)) == []
            command = self.one(EnvironmentReady(command.environment))
        assert isinstance(command, Dispatch)
        return command

    def end(self, dispatch: Dispatch, outcome: Outcome = Outcome.SUCCESS) -> list[AnyCommand]:
        return self.tell(InvocationEnded(dispatch.environment, dispatch.request, outcome))

    def idle(self, count: int = 1, version: int = VERSION) -> list[int]:
        """So many idle environments; they became idle in the order of the list."""
        dispatches = [self.dispatch(version) for _ in range(count)]
        for dispatch in dispatches:
            self.end(dispatch)
        return [dispatch.environment for dispatch in dispatches]

    def states(self) -> dict[int, str]:
        return {view.environment: view.state.value for view in self.scheduler.environments()}

    def in_flight(self) -> int:
        return self.scheduler.statistics().in_flight

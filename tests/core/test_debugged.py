"""An environment with a debugger: no time limits, first in line, and only while it lives."""

from __future__ import annotations

from lambent.core.environment import NEVER_NS
from lambent.core.events import (
    Complete,
    Dispatch,
    EnvironmentDebugged,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    InvocationEnded,
    Reset,
    Start,
    Stop,
    StopReason,
    VersionRetired,
)
from lambent.model.invocation import Outcome

from .helpers import IDLE_NS, INIT_TIMEOUT_NS, TIMEOUT_NS, VERSION, Bench


def debugged(bench: Bench) -> Dispatch:
    """The first environment, with a debugger, busy with a request."""
    start = bench.start()
    assert bench.tell(EnvironmentDebugged(start.environment)) == []
    assert bench.tell(EnvironmentStarted(start.environment)) == []
    command = bench.one(EnvironmentReady(start.environment))
    assert isinstance(command, Dispatch)
    return command


def test_neither_init_nor_a_request_times_out() -> None:
    bench = Bench()
    start = bench.start()
    bench.tell(EnvironmentDebugged(start.environment))
    bench.tell(EnvironmentStarted(start.environment))
    assert bench.tick(100 * INIT_TIMEOUT_NS) == []
    dispatch = bench.one(EnvironmentReady(start.environment))
    assert dispatch == Dispatch(1, 1, NEVER_NS, cold=True, reinit=False)
    assert bench.tick(100 * TIMEOUT_NS) == []
    assert bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS)) == [Complete(1, 1, Outcome.SUCCESS)]


def test_told_after_started_the_limit_of_init_goes() -> None:
    bench = Bench()
    start = bench.start()
    bench.tell(EnvironmentStarted(start.environment))
    bench.tell(EnvironmentDebugged(start.environment))
    assert bench.tick(2 * INIT_TIMEOUT_NS) == []
    assert bench.states() == {1: "init"}


def test_the_others_keep_their_timeouts() -> None:
    bench = Bench()
    debugged(bench)
    other = bench.dispatch()
    assert other.deadline_ns == bench.now_ns + TIMEOUT_NS
    assert bench.tick(TIMEOUT_NS) == [Complete(2, 2, Outcome.TIMEOUT), Reset(2)]


def test_it_is_taken_first_although_another_was_used_later() -> None:
    bench = Bench()
    paused, other = debugged(bench), bench.dispatch()
    bench.end(paused)
    bench.end(other)
    assert [bench.dispatch().environment for _ in range(2)] == [1, 2]
    assert isinstance(bench.one_invoke(), Start)


def test_one_at_a_time_and_not_one_that_has_served() -> None:
    bench = Bench()
    first = debugged(bench)
    second = bench.dispatch()
    bench.end(second)
    bench.tell(EnvironmentDebugged(second.environment))
    assert bench.dispatch().deadline_ns == bench.now_ns + TIMEOUT_NS
    bench.end(first)
    assert bench.dispatch().deadline_ns == NEVER_NS


def test_after_its_end_another_one_may_have_it() -> None:
    bench = Bench()
    debugged(bench)
    assert bench.tell(EnvironmentDied(1)) == [Complete(1, 1, Outcome.ENVIRONMENT_LOST)]
    start = bench.start()
    bench.tell(EnvironmentDebugged(start.environment))
    bench.tell(EnvironmentStarted(start.environment))
    dispatch = bench.one(EnvironmentReady(start.environment))
    assert isinstance(dispatch, Dispatch)
    assert dispatch.deadline_ns == NEVER_NS


def test_a_retired_one_ends_after_its_request_and_an_idle_one_is_reclaimed() -> None:
    bench = Bench()
    dispatch = debugged(bench)
    bench.tell(VersionRetired(VERSION))
    assert bench.tick(100 * TIMEOUT_NS) == []
    assert bench.end(dispatch) == [Complete(1, 1, Outcome.SUCCESS), Stop(1, StopReason.RETIRED)]
    bench = Bench()
    bench.end(debugged(bench))
    assert bench.tick(IDLE_NS) == [Stop(1, StopReason.IDLE)]

"""Which environment, which worker, and who must go to make room."""

from __future__ import annotations

from lambent.core.events import (
    Dispatch,
    EnvironmentDied,
    Start,
    Stop,
    StopReason,
    Throttle,
    VersionSet,
    WorkerJoined,
    WorkerLost,
)
from lambent.model.invocation import ThrottleReason

from .helpers import FUNCTION, INIT_TIMEOUT_NS, TIMEOUT_NS, VERSION, WORKER, Bench

BIG, SMALL = 201, 202


def sizes(bench: Bench) -> Bench:
    bench.tell(VersionSet(BIG, FUNCTION, 512, TIMEOUT_NS, INIT_TIMEOUT_NS))
    bench.tell(VersionSet(SMALL, FUNCTION, 64, TIMEOUT_NS, INIT_TIMEOUT_NS))
    return bench


def test_most_recently_used_first() -> None:
    bench = Bench()
    first, second, third = bench.idle(3)
    assert [bench.dispatch().environment for _ in range(2)] == [third, second]
    fourth = bench.start().environment if bench.dispatch().environment == first else None
    assert fourth == third + 1


def test_most_recently_used_is_by_when_it_became_idle() -> None:
    bench = Bench()
    dispatches = [bench.dispatch() for _ in range(3)]
    for position in (2, 0, 1):
        bench.end(dispatches[position])
    order = [bench.dispatch().environment for _ in range(3)]
    assert order == [dispatches[position].environment for position in (1, 0, 2)]


def test_idle_ones_of_another_version_do_not_serve() -> None:
    bench = sizes(Bench())
    bench.idle(2)
    assert isinstance(bench.invoke(SMALL)[-1], Start)


def test_the_worker_with_most_free_memory_then_the_lowest_id() -> None:
    bench = sizes(Bench(memory_mib=1_000))
    bench.tell(WorkerJoined(3, 1_200, 10))
    bench.tell(WorkerJoined(2, 1_200, 10))
    chosen = [bench.start(BIG).worker for _ in range(5)]
    assert chosen == [2, 3, WORKER, 2, 3]
    assert bench.invoke(BIG) == [Throttle(6, ThrottleReason.CONCURRENCY, capacity=True)]


def test_number_of_environments_is_room_too() -> None:
    bench = Bench(environments_max=2)
    bench.start()
    bench.start()
    assert bench.invoke() == [Throttle(3, ThrottleReason.CONCURRENCY, capacity=True)]


def test_least_recently_used_ones_make_room() -> None:
    bench = sizes(Bench(memory_mib=600))
    old, older_use, newest = bench.idle(3)
    assert bench.dispatch().environment == newest  # busy ones never go
    assert bench.invoke(BIG) == [Throttle(5, ThrottleReason.CONCURRENCY, capacity=True)]
    assert bench.states()[old] == bench.states()[older_use] == "idle"  # a refusal stops nobody
    bench.tell(WorkerJoined(WORKER, 700, 100))
    commands = bench.invoke(BIG)
    stops = [Stop(old, StopReason.ROOM), Stop(older_use, StopReason.ROOM)]
    assert commands == [*stops, Start(newest + 1, WORKER, BIG)]


def test_no_more_of_them_than_necessary() -> None:
    bench = sizes(Bench(memory_mib=384))
    old, *_ = bench.idle(3)
    assert bench.invoke(SMALL) == [Stop(old, StopReason.ROOM), Start(4, WORKER, SMALL)]
    assert bench.invoke(SMALL) == [Start(5, WORKER, SMALL)]


def test_the_worker_whose_idle_ones_have_waited_longest_makes_room() -> None:
    bench = sizes(Bench(memory_mib=128))
    bench.tell(WorkerJoined(2, 128, 10))
    first, second = bench.dispatch(), bench.dispatch()
    bench.end(second)
    bench.now_ns += 1
    bench.end(first)
    bench.now_ns += 1
    assert bench.invoke(SMALL)[0] == Stop(second.environment, StopReason.ROOM)


def test_the_room_of_a_stopping_one_is_free_at_once() -> None:
    bench = sizes(Bench(memory_mib=128, environments_max=1))
    bench.idle(1)
    stop, start = bench.invoke(SMALL)
    assert isinstance(stop, Stop)
    assert isinstance(start, Start)
    worker = bench.scheduler.statistics().workers[0]
    assert (worker.memory_used_mib, worker.environments) == (64, 1)
    bench.tell(EnvironmentDied(stop.environment))
    worker = bench.scheduler.statistics().workers[0]
    assert (worker.memory_used_mib, worker.environments) == (64, 1)


def test_no_workers() -> None:
    bench = Bench(environments_max=0)
    assert bench.invoke() == [Throttle(1, ThrottleReason.CONCURRENCY, capacity=True)]


def test_a_worker_that_is_smaller_than_what_runs_takes_nothing_more() -> None:
    bench = Bench(memory_mib=256)
    running = bench.dispatch()
    bench.tell(WorkerJoined(WORKER, 100, 10))
    assert isinstance(bench.one_invoke(), Throttle)
    bench.end(running)
    assert isinstance(bench.one_invoke(), Dispatch)


def test_a_lost_worker_comes_back_empty() -> None:
    bench = Bench(memory_mib=128)
    bench.idle(1)
    assert bench.tell(WorkerLost(WORKER)) == []
    assert bench.states() == {}
    assert bench.tell(WorkerLost(WORKER)) == []
    bench.tell(WorkerJoined(WORKER, 128, 1))
    assert bench.start(VERSION).environment == 2

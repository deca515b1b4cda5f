"""Recordings of a live server as a workload, and functions with settings of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lambent.core.events import (
    AccountSet,
    AnyEvent,
    Dispatch,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionSet,
    InvocationEnded,
    Invoke,
    ProvisionedSet,
    Start,
    VersionSet,
    WorkerJoined,
)
from lambent.core.recording import encode
from lambent.core.scheduler import Scheduler
from lambent.model.invocation import Outcome
from lambent.plan.planner import Request, simulate
from lambent.plan.recorded import read
from lambent.plan.workload import WorkloadError

MS = 1_000_000


def record(path: Path) -> None:
    """A server with two functions: `7` with two provisioned environments, `9` with a reservation of 1."""
    scheduler = Scheduler()
    now_ns = 5_000 * MS
    out = bytearray()

    def tell(event: AnyEvent) -> list[object]:
        commands = scheduler.handle(now_ns, event)
        out.extend(encode(now_ns, event, commands))
        return list(commands)

    def start(commands: list[object], init_ms: int) -> list[int]:
        """Environments that were told to start are up after init_ms."""
        nonlocal now_ns
        started = [command.environment for command in commands if isinstance(command, Start)]
        for environment in started:
            tell(EnvironmentStarted(environment))
        now_ns += init_ms * MS
        for environment in started:
            tell(EnvironmentReady(environment))
        return started

    def end(environment: int, request: int, after_ms: int) -> None:
        nonlocal now_ns
        now_ns += after_ms * MS
        tell(InvocationEnded(environment, request, Outcome.SUCCESS))

    tell(AccountSet(1, 50))
    tell(WorkerJoined(1, 4_096, 100))
    tell(FunctionSet(7, 1))
    tell(FunctionSet(9, 1, 1))
    tell(FunctionSet(11, 1))
    tell(VersionSet(70, 7, 512, 3_000 * MS, 10_000 * MS))
    tell(VersionSet(90, 9, 128, 3_000 * MS, 10_000 * MS))
    start(tell(ProvisionedSet(1, ((70, 2),))), 400)
    now_ns += 1_000 * MS
    first = tell(Invoke(1, 70))[-1]
    assert isinstance(first, Dispatch)
    end(first.environment, 1, 250)
    [environment] = start(tell(Invoke(2, 90)), 300)
    tell(Invoke(3, 90))
    end(environment, 2, 100)
    warm = tell(Invoke(4, 90))[-1]
    assert isinstance(warm, Dispatch)
    end(warm.environment, 4, 60)
    path.write_bytes(out)


def test_what_was_recorded_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    record(path)
    found = read(path)
    assert [function.name for function in found.functions] == ["function-7", "function-9"]
    assert found.arrivals == [
        (0, 250 * MS, 0, 0),
        (250 * MS, 100 * MS, 300 * MS, 1),
        # Throttled: the mean of the others, 80 ms.
        (550 * MS, 80 * MS, 300 * MS, 1),
        (650 * MS, 60 * MS, 300 * MS, 1),
    ]
    assert found.account_concurrency == 50
    assert found.actual.environments_started == 3
    assert found.actual.throttles_by_reason == {"ReservedFunctionConcurrentInvocationLimitExceeded": 1}
    summary = simulate(Request(recording=path))
    for name in ("invocations", "cold_starts", "environments_started", "throttles", "peak_concurrency"):
        assert getattr(summary, name) == getattr(found.actual, name), name
    assert summary.provisioned is not None
    assert summary.provisioned.invocations == 1
    assert summary.account_concurrency == 50
    # What if?
    other = simulate(Request(recording=path, reserved=("function-9=5",), provisioned=("0",)))
    assert other.throttles == 0
    assert other.provisioned is None
    assert other.cold_starts == 3


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\1x", b"\0\0\0\0" * 4, bytes(200), b"\xff" * 20])
def test_what_is_no_recording(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recording"
    path.write_bytes(data)
    with pytest.raises(WorkloadError) as caught:
        simulate(Request(recording=path))
    assert "\n" not in str(caught.value)


CONFIG = """
[functions.orders]
rate = 20
duration = 0.1
init = 0.4
provisioned = 3

[functions.reports]
rate = 0.5
duration = 4
memory = 1024
reserved = 2
snapstart = true
restore = 0.2
"""


def test_functions_share_the_account(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(CONFIG)
    summary = simulate(Request(config=path, seconds=600))
    orders, reports = sorted(summary.functions, key=lambda line: line.name)
    assert orders.invocations == pytest.approx(12_000, rel=0.05)
    assert (orders.provisioned, orders.memory_mib) == (3, 128)
    assert orders.spillovers > 0
    assert (reports.reserved, reports.memory_mib, reports.throttles > 20) == (2, 1_024, True)
    assert reports.cold_starts == 2
    assert summary.cost.snap_start_restore_usd > 0
    assert summary.mean_concurrency > 2
    as_json = tmp_path / "plan.json"
    as_json.write_text(json.dumps({"functions": {"orders": {"rate": 1, "duration": 1}}}))
    assert simulate(Request(config=as_json, seconds=60)).functions_count == 1


def test_settings_for_functions_of_a_trace(tmp_path: Path) -> None:
    path, trace = tmp_path / "plan.toml", tmp_path / "t.csv"
    path.write_text("[functions.b]\nprovisioned = 1\nmemory = 256\n")
    trace.write_text("arrival_s,duration_s,init_s,function\n0,1,0.5,a\n1,1,0.5,b\n1.5,1,0.5,b\n")
    summary = simulate(Request(trace=trace, config=path))
    lines = {line.name: line for line in summary.functions}
    assert (lines["a"].cold_starts, lines["b"].cold_starts) == (1, 1)
    assert (lines["b"].provisioned_invocations, lines["b"].spillovers, lines["b"].memory_mib) == (1, 1, 256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a table `functions`"),
        ("x = 1", "must be a table `functions`"),
        ("[functions]\na = 1", "a: must be a table"),
        ("[functions.a]\nrat = 1", "there is no setting rat"),
        ("[functions.a]\nrate = '1'", "rate must be a number"),
        ("[functions.a]\nrate = 1", "--rate needs"),
        ("[functions.a]\nrate = 1\nduration = 1\n[functions.b]\nmemory = 128", "b: no rate"),
        ("[functions.a]\nrate = 1\nduration = 1\nreserved = -1", "--reserved must be"),
        ("[functions.a]\nrate = 1\nduration = 1\nshape = 'x'", "--shape must be"),
        ("[functions.a]\nrate = 1\nduration = 1\nprovisioned = 1\nsnapstart = true", "can not be had together"),
        ("[functions.a]\nmemory = 128", "give one of"),
        ("{broken", "cannot be read"),
        ("[broken", "cannot be read"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message) as caught:
        simulate(Request(config=path))
    assert "\n" not in str(caught.value)

"""What a replay makes of its samples; the driver itself is tested against a real server in tests/integration."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.plan.planner import Request, simulate
from lambent.plan.replay import Sample, Target, calibrated, differences, drive, measured, peak, write
from lambent.plan.workload import Arrival, WorkloadError

MS = 1_000_000


def sample(due_ms: int, took_ms: int, cold: bool = False, status: int = 200, environment: str = "x") -> Sample:
    return Sample(
        due_ms * MS, 0, due_ms * MS + MS, (due_ms + 1 + took_ms) * MS, status,
        "ReservedFunctionConcurrentInvocationLimitExceeded" if status == 429 else None, False,
        environment if status == 200 else None, cold,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=30))
def test_peak(spans: list[tuple[int, int]]) -> None:
    closed = [(begin, begin + length) for begin, length in spans]
    assert peak(closed) == max((sum(b <= t < e for b, e in closed) for t in range(71)), default=0)


def test_figures_and_calibration(tmp_path: Path) -> None:
    arrivals: list[Arrival] = [(0, 100 * MS, 0, 0), (50 * MS, 100 * MS, 0, 0), (300 * MS, 100 * MS, 0, 0)]
    samples = [sample(0, 350, cold=True), sample(50, 2, status=429), sample(500, 104)]
    found = measured(samples, 1, None)
    assert (found.invocations, found.cold_starts, found.throttles, found.environments_started) == (3, 1, 1, 1)
    assert found.peak_concurrency == 1
    # From when it should have gone out, not from when it did.
    assert found.latency_ms["max"] == 351
    assert found.late_p99_ms == 1
    assert measured(samples, 3, 7).peak_concurrency == 7
    adjusted = calibrated(arrivals, samples, durations_known=True)
    assert adjusted[0] == (0, 104 * MS, 246 * MS, 0)
    assert calibrated(arrivals, samples, durations_known=False)[1] == (50 * MS, 104 * MS, 246 * MS, 0)
    path = tmp_path / "r.csv"
    write(path, ["f"], adjusted, samples)
    summary = simulate(Request(recording=path))
    assert summary.invocations == 3
    assert summary.functions[0].name == "f"


def test_differences() -> None:
    before = dict.fromkeys(("environments_started", "cold_starts", "throttles", "peak_concurrency", "spillovers"), 10)
    latency = {"latency_ms": dict.fromkeys(("p50", "p95", "p99", "max"), 100.0)}
    after = before | {"cold_starts": 11, "throttles": 0}
    found = differences(before | {"spillovers": 0} | latency, after | latency)
    assert found["cold_starts"] == pytest.approx(0.1)
    assert found["throttles"] == -1
    assert found["spillovers"] is None
    assert found["latency_p99_ms"] == 0


def test_a_server_that_hangs_up() -> None:
    """Requests without an answer are errors, and the replay ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    async def run() -> list[Sample]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        arrivals: list[Arrival] = [(number * MS, MS, 0, 0) for number in range(5)]
        async with server:
            return await asyncio.to_thread(drive, f"http://127.0.0.1:{port}", [Target("f")], arrivals, "0", "r")

    samples = asyncio.run(run())
    assert [each.status for each in samples] == [0] * 5
    assert measured(samples, 0, None).errors == 5
    with pytest.raises(WorkloadError, match="must be http"):
        drive("https://x", [Target("f")], [(0, 1, 0, 0)], "0", "r")

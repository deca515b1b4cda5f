"""Drive a live server with a workload, open-loop, and say what came of it.

For: `lambent replay`. It must not deploy anything (cli/replaying.py does) nor wait for answers before it sends: each
request goes out at its own time, on an idle connection or on a new one, however many are in flight. Latency counts
from the time at which a request should have gone out, so a server that stands still can not hide behind requests that
were never sent (coordinated omission). Outcomes: a `Sample` for each request, and `Measured`, the same figures as a
plan has, for both to stand side by side.

The HTTP is written and read by hand: a few microseconds for each request, so that the driver takes little of the
machine that the server needs too. Requests look signed, as AWS's SDKs' do, but are not.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import csv
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from lambent.model.limits import NS_PER_MS, NS_PER_S
from lambent.plan.measure import Sketch
from lambent.plan.workload import Arrival, WorkloadError

#: More open sockets than this are somebody's mistake.
CONNECTIONS_MAX: Final = 10_000
#: How long answers are waited for when the last request is out: longer than any function may run.
GRACE_S: Final = 960.0
_LEAD_S: Final = 0.25


@dataclasses.dataclass(slots=True)
class Sample:
    """One request. Times are nanoseconds since the beginning of the replay."""

    due_ns: int
    index: int
    sent_ns: int = 0
    answered_ns: int = 0
    #: 0: no answer came.
    status: int = 0
    #: Of a 429.
    reason: str | None = None
    failed: bool = False
    environment: str | None = None
    cold: bool = False
    #: It ran on demand although its function has provisioned concurrency.
    spilled: bool = False

    @property
    def served(self) -> bool:
        return self.status == 200

    @property
    def took_ns(self) -> int:
        return self.answered_ns - self.sent_ns


@dataclasses.dataclass(frozen=True)
class Target:
    """A function on the server."""

    name: str
    qualifier: str | None = None
    provisioned: bool = False
    #: Body for a duration in seconds.
    payload: Callable[[float], bytes] = lambda seconds: b'{"s":%.6f}' % seconds
    #: Cold starts are told by the log's tail, for functions that are not ours.
    tail: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the server did, in the words of a plan."""

    invocations: int
    cold_starts: int
    environments_started: int
    throttles: int
    throttles_by_reason: dict[str, int]
    peak_concurrency: int
    spillovers: int
    latency_ms: dict[str, float]
    #: Answers with X-Amz-Function-Error, 5xx, or none at all.
    errors: int
    #: How much later than meant requests went out: the driver's own doing.
    late_p99_ms: float


# --- the driver -----------------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    __slots__ = ("_done", "_driver", "_expected", "_received", "_sample", "transport")

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._sample: Sample | None = None
        self._received = bytearray()
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]  # uvloop's transports have their own base

    def send(self, sample: Sample, request: bytes) -> None:
        assert self._sample is None
        self._sample = sample
        sample.sent_ns = self._driver.now_ns()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(received[:head_end])
        length = _header(head, b"content-length")
        whole = head_end + 4 + int(length or b"0")
        sample = self._sample
        if len(received) < whole or sample is None:
            return
        body = bytes(received[head_end + 4 : whole])
        received.clear()
        self._sample = None
        sample.answered_ns = self._driver.now_ns()
        self._driver.answered(self, sample, head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        sample, self._sample = self._sample, None
        self._driver.lost(self, sample)


def _header(head: bytes, name: bytes) -> bytes | None:
    start = head.lower().find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : len(head) if end < 0 else end].strip()


class _Driver:
    def __init__(self, endpoint: str, targets: Sequence[Target], authorization: str) -> None:
        url = urlsplit(endpoint)
        if url.scheme != "http" or url.hostname is None:
            raise WorkloadError(f"--endpoint {endpoint}: must be http://HOST:PORT")
        self._host, self._port = url.hostname, url.port or 80
        self._targets = targets
        self._heads = [self._head(target, url.netloc, authorization) for target in targets]
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun_ns = 0
        self._left = 0
        self._done = asyncio.Event()
        self._opening = 0

    @staticmethod
    def _head(target: Target, host: str, authorization: str) -> bytes:
        path = f"/2015-03-31/functions/{quote(target.name, safe=':')}/invocations"
        if target.qualifier is not None:
            path += f"?Qualifier={quote(target.qualifier)}"
        tail = "X-Amz-Log-Type: Tail\r\n" if target.tail else ""
        return (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n{tail}Content-Length: "
        ).encode()

    def now_ns(self) -> int:
        return time.monotonic_ns() - self._begun_ns

    async def run(self, arrivals: Sequence[Arrival], connections: int) -> list[Sample]:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._connect() for _ in range(connections)))
        samples = [Sample(arrival[0], arrival[3]) for arrival in arrivals]
        self._left = len(samples)
        self._begun_ns = time.monotonic_ns() + int(_LEAD_S * NS_PER_S)
        for arrival, sample in zip(arrivals, samples, strict=True):
            wait_ns = sample.due_ns - self.now_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / NS_PER_S)
            body = self._targets[arrival[3]].payload(arrival[1] / NS_PER_S)
            request = b"%b%d\r\n\r\n%b" % (self._heads[arrival[3]], len(body), body)
            if self._idle:
                self._idle.pop().send(sample, request)
            else:
                task = loop.create_task(self._send_on_new(sample, request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if self._left:
            async with asyncio.timeout(GRACE_S):
                await self._done.wait()
        for connection in list(self._open):
            connection.transport.close()
        return samples

    async def _connect(self) -> None:
        connection = await self._new()
        self._idle.append(connection)

    async def _new(self) -> _Connection:
        if len(self._open) + self._opening >= CONNECTIONS_MAX:
            raise OSError(f"more than {CONNECTIONS_MAX:,} requests are in flight")
        self._opening += 1
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        finally:
            self._opening -= 1
        self._open.add(connection)
        return connection

    async def _send_on_new(self, sample: Sample, request: bytes) -> None:
        try:
            connection = await self._new()
        except OSError:
            sample.sent_ns = self.now_ns()
            self._count()
            return
        connection.send(sample, request)

    def answered(self, connection: _Connection, sample: Sample, head: bytes, body: bytes) -> None:
        sample.status = int(head[9:12])
        target = self._targets[sample.index]
        if sample.status == 200:
            sample.failed = _header(head, b"x-amz-function-error") is not None
            if target.tail:
                log = base64.b64decode(_header(head, b"x-amz-log-result") or b"")
                sample.cold = b"Init Duration" in log or b"Restore Duration" in log
            elif not sample.failed:
                answer = json.loads(body)
                on_demand = answer["i"] != "provisioned-concurrency"
                sample.environment = answer["e"]
                sample.cold = answer["c"] and on_demand
                sample.spilled = target.provisioned and on_demand
        elif sample.status == 429:
            sample.reason = json.loads(body).get("Reason")
        self._idle.append(connection)
        self._count()

    def lost(self, connection: _Connection, sample: Sample | None) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if sample is not None:
            sample.answered_ns = self.now_ns()
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()


def drive(
    endpoint: str, targets: Sequence[Target], arrivals: Sequence[Arrival], access_key: str, region: str
) -> list[Sample]:
    """Send it all; `targets` by the index of the arrivals' functions. Raises OSError when nobody listens."""
    import uvloop

    authorization = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/20260101/{region}/lambda/aws4_request, "
        "SignedHeaders=host, Signature=0"
    )

    async def run() -> list[Sample]:
        driver = _Driver(endpoint, targets, authorization)
        return await driver.run(arrivals, min(_expected(arrivals), 1_000))

    collects = gc.isenabled()
    gc.disable()  # a collection in the middle would make requests late
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    finally:
        if collects:
            gc.enable()


def _expected(arrivals: Iterable[Arrival]) -> int:
    """Connections to open ahead: what is in flight at most if nothing takes longer than meant."""
    spans = [(arrival_ns, arrival_ns + duration_ns + init_ns) for arrival_ns, duration_ns, init_ns, _ in arrivals]
    return peak(spans) + 8


def peak(spans: Iterable[tuple[int, int]]) -> int:
    """How many overlap at most; one that ends when another begins does not."""
    steps = sorted(step for begin, end in spans for step in ((begin, 1), (end, -1)))
    level = highest = 0
    for _, by in steps:
        level += by
        highest = max(highest, level)
    return highest


# --- what came of it ------------------------------------------------------------------------------------


def measured(samples: Sequence[Sample], environments_listed: int, server_peak: int | None) -> Measured:
    """`environments_listed`: how many the server has of these functions when all is over. `server_peak`: its own metric
    ConcurrentExecutions; without it, concurrency is seen from here, where requests take a little longer."""
    served = [sample for sample in samples if sample.served]
    reasons = collections.Counter(sample.reason or "unknown" for sample in samples if sample.status == 429)
    latency, late = Sketch(), Sketch()
    for sample in samples:
        late.add(max(0, sample.sent_ns - sample.due_ns))
    for sample in served:
        latency.add(sample.answered_ns - sample.due_ns)
    seen = {sample.environment for sample in served if sample.environment is not None}
    return Measured(
        invocations=len(samples),
        cold_starts=sum(sample.cold for sample in served),
        environments_started=max(len(seen), environments_listed),
        throttles=sum(reasons.values()),
        throttles_by_reason=dict(reasons),
        peak_concurrency=server_peak or peak((sample.sent_ns, sample.answered_ns) for sample in served),
        spillovers=sum(sample.spilled for sample in served),
        latency_ms={f"p{percent:g}": latency.percentile(percent) / NS_PER_MS for percent in (50, 90, 95, 99, 99.9)}
        | {"mean": latency.mean() / NS_PER_MS, "max": latency.high / NS_PER_MS},
        errors=sum(sample.failed or sample.status not in (200, 429) for sample in samples),
        late_p99_ms=late.percentile(99) / NS_PER_MS,
    )


def calibrated(arrivals: Sequence[Arrival], samples: Sequence[Sample], durations_known: bool) -> list[Arrival]:
    """The workload with the times of this machine: what each request takes beside its own duration, and what Init
    takes, both as the median. With durations that are not known, each takes what it took."""
    warm = [(a, s) for a, s in zip(arrivals, samples, strict=True) if s.served and not s.cold]
    cold = [(a, s) for a, s in zip(arrivals, samples, strict=True) if s.served and s.cold]
    usual_ns = _median([s.took_ns for _, s in warm])
    beside_ns = max(0, _median([s.took_ns - a[1] for a, s in warm])) if durations_known else 0
    if durations_known:
        init_ns = max(0, _median([s.took_ns - a[1] for a, s in cold]) - beside_ns)
    else:
        init_ns = max(0, _median([s.took_ns for _, s in cold]) - usual_ns)
    found = []
    for (arrival_ns, duration_ns, given_ns, index), sample in zip(arrivals, samples, strict=True):
        if durations_known:
            took_ns = duration_ns + beside_ns
        elif sample.served:
            took_ns = max(0, sample.took_ns - init_ns) if sample.cold else sample.took_ns
        else:
            took_ns = usual_ns
        found.append((arrival_ns, took_ns, init_ns if cold else given_ns, index))
    return found


def _median(values: list[int]) -> int:
    return int(statistics.median(values)) if values else 0


def write(path: Path, names: Sequence[str], arrivals: Sequence[Arrival], samples: Sequence[Sample]) -> None:
    """The recording: a trace that `lambent plan --recording` reads, with what was seen beside it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("arrival_s", "duration_s", "init_s", "function", "status", "reason", "cold", "environment", "latency_s")
        )
        for (arrival_ns, duration_ns, init_ns, index), sample in zip(arrivals, samples, strict=True):
            writer.writerow(
                (
                    repr(arrival_ns / NS_PER_S),
                    repr(duration_ns / NS_PER_S),
                    repr(init_ns / NS_PER_S),
                    names[index],
                    sample.status,
                    sample.reason or "",
                    int(sample.cold),
                    sample.environment or "",
                    repr((sample.answered_ns - sample.due_ns) / NS_PER_S),
                )
            )


#: Figures that are set against each other.
COMPARED: Final = ("environments_started", "cold_starts", "throttles", "peak_concurrency", "spillovers")
LATENCIES: Final = ("p50", "p95", "p99", "max")


def differences(predicted: dict[str, Any], found: dict[str, Any]) -> dict[str, float | None]:
    """(measured - predicted) / predicted; None where something came of nothing."""
    pairs = {key: (predicted[key], found[key]) for key in COMPARED}
    pairs |= {f"latency_{key}_ms": (predicted["latency_ms"][key], found["latency_ms"][key]) for key in LATENCIES}
    return {key: _difference(before, after) for key, (before, after) in pairs.items()}


def _difference(before: float, after: float) -> float | None:
    if before == after:
        return 0.0
    return (after - before) / before if before else None

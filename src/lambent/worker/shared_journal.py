"""The log stream of an environment that serves several requests at once."""

from __future__ import annotations

import collections
from typing import Any

from lambent.model.limits import LOG_TAIL_MAX_BYTES
from lambent.worker.interface import LogSink
from lambent.worker.journal import Journal, now_ms
from lambent.worker.report import PlatformLines


class _Tail:
    """The last lines for one X-Amz-Log-Type."""

    __slots__ = ("_length", "_lines")

    def __init__(self) -> None:
        self._lines: collections.deque[str] = collections.deque()
        self._length = 0

    def add(self, line: str) -> None:
        """Only what can still be asked for is kept. A character is a byte or more."""
        self._lines.append(line)
        self._length += len(line)
        while self._length - len(self._lines[0]) >= LOG_TAIL_MAX_BYTES:
            self._length -= len(self._lines.popleft())

    def whole(self) -> bytes:
        return "".join(self._lines).encode()[-LOG_TAIL_MAX_BYTES:]


class SharedJournal(Journal):
    """A line that names a running request belongs to that one; others (what handlers print) to all that run."""

    __slots__ = ("_running", "_tails")

    def __init__(self, lines: PlatformLines, sink: LogSink) -> None:
        super().__init__(lines, sink)
        self._running: collections.Counter[str] = collections.Counter()
        self._tails: dict[int, tuple[str, _Tail]] = {}

    def enter(self, request: int, request_id: str, wants_tail: bool) -> None:
        """A request has come. `request`: the scheduler's number, as a retry may have the id of the first try."""
        self._running[request_id] += 1
        if wants_tail:
            self._tails[request] = request_id, _Tail()

    def leave(self, request: int, request_id: str) -> bytes | None:
        """It has its answer; its tail."""
        self._running[request_id] -= 1
        if not self._running[request_id]:
            del self._running[request_id]
        found = self._tails.pop(request, None)
        return None if found is None else found[1].whole()

    def report_call(
        self, request_id: str, duration_ns: int, status: str, error_type: str | None, spans: list[dict[str, Any]]
    ) -> None:
        """REPORT, which has nothing but the duration and these spans (fact sheet 3.4)."""
        at = now_ms()
        record = self.lines.records.report(request_id, duration_ns, 0, None, status, error_type)
        if spans:
            record["spans"] = spans
        self._line(at, self.lines.managed_report(at, record))
        if self.telemetry is not None:
            self._publish(at, "report", record)

    def _line(self, time_ms: int, line: str | None) -> None:
        if line is not None:
            self._sink.write(time_ms, line)
            if self._tails:
                self._offer(line)

    def _write(self, events: list[tuple[int, str]], source: str) -> None:
        super()._write(events, source)
        if self._tails:
            for _, message in events:
                self._offer(message if message.endswith("\n") else message + "\n")

    def _offer(self, line: str) -> None:
        named = {request_id for request_id in self._running if request_id in line}
        for request_id, tail in self._tails.values():
            if not named or request_id in named:
                tail.add(line)

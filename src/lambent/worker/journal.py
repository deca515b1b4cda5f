"""The log stream of an environment, and the same events for telemetry: what the function prints, in its place between
the platform's own START, END and REPORT lines."""

from __future__ import annotations

import collections
import fcntl
import os
import termios
import time
from typing import Any

from lambent.model.limits import LOG_TAIL_MAX_BYTES
from lambent.worker.api.interface import EnvironmentApi
from lambent.worker.interface import LogSink
from lambent.worker.log_pipe import LogParser
from lambent.worker.report import PlatformLines, Restore

#: The size of the pipe: all that can wait in it when an invocation ends.
_READ_BYTES = 65_536
_NOTHING = bytearray(4)
_waiting_bytes = bytearray(4)  # written by FIONREAD; one thread


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Journal:
    """Writes what happens in one environment. `telemetry` is set while a subscriber may listen."""

    __slots__ = ("_extension_parser", "_parser", "_sink", "_tail", "_tail_length", "lines", "telemetry")

    def __init__(self, lines: PlatformLines, sink: LogSink) -> None:
        self.lines = lines
        self.telemetry: EnvironmentApi | None = None
        self._sink = sink
        self._parser = LogParser()
        self._extension_parser: LogParser | None = None
        self._tail: collections.deque[str] | None = None
        self._tail_length = 0

    # --- the platform's own events ----------------------------------------------------------------------

    def _line(self, time_ms: int, line: str | None) -> None:
        if line is not None:
            self._sink.write(time_ms, line)
            if self._tail is not None:
                self._add_to_tail(line)

    def _publish(self, time_ms: int, kind: str, record: dict[str, Any]) -> None:
        assert self.telemetry is not None
        self.telemetry.publish("platform", time_ms, f"platform.{kind}", record)

    def say(self, line: str) -> None:
        """A line of Lambent's own."""
        self._line(now_ms(), line)

    def init_start(self, runtime_version: str, phase: str) -> None:
        """A suppressed Init is not shown in the log, but to telemetry."""
        at = now_ms()
        if phase != "invoke":
            self._line(at, self.lines.init_start(at, runtime_version, phase))
        if self.telemetry is not None:
            self._publish(at, "initStart", self.lines.records.init_start(runtime_version, phase))

    def init_end(self, init_ns: int, phase: str, status: str, error_type: str | None = None) -> None:
        at = now_ms()
        if phase != "invoke" or status != "success":
            self._line(at, self.lines.init_report(at, init_ns, phase, status, error_type))
        if self.telemetry is not None:
            records = self.lines.records
            self._publish(at, "initRuntimeDone", records.init_runtime_done(phase, status, error_type))
            self._publish(at, "initReport", records.init_report(init_ns, phase, status, error_type))

    def restore_start(self, runtime_version: str, inside_invoke: bool) -> None:
        """A restore inside an invocation is not shown in the log, but to telemetry."""
        at = now_ms()
        if not inside_invoke:
            self._line(at, self.lines.restore_start(at, runtime_version))
        if self.telemetry is not None:
            self._publish(at, "restoreStart", self.lines.records.restore_start(runtime_version))

    def restore_end(self, restore_ns: int, inside_invoke: bool, status: str, error_type: str | None = None) -> None:
        at = now_ms()
        if not inside_invoke or status != "success":
            self._line(at, self.lines.restore_report(at, restore_ns, status, error_type))
        if self.telemetry is not None:
            records = self.lines.records
            self._publish(at, "restoreRuntimeDone", records.restore_done(status, error_type))
            self._publish(at, "restoreReport", records.restore_report(restore_ns, status, error_type))

    def start(self, request_id: str, tenant_id: str) -> None:
        at = now_ms()
        self._line(at, self.lines.start(at, request_id, tenant_id))
        if self.telemetry is not None:
            self._publish(at, "start", self.lines.records.start(request_id, tenant_id))

    def runtime_done(self, request_id: str, duration_ns: int, status: str, error_type: str | None) -> None:
        """To telemetry, as soon as the runtime is done; extensions may take longer."""
        if self.telemetry is not None:
            record = self.lines.records.runtime_done(request_id, duration_ns, status, error_type)
            self._publish(now_ms(), "runtimeDone", record)

    def report(
        self,
        request_id: str,
        duration_ns: int,
        used_mib: int,
        init_ns: int | None,
        status: str,
        error_type: str | None,
        restore: Restore | None = None,
        tenant_id: str = "",
    ) -> None:
        """END and REPORT."""
        at = now_ms()
        lines = self.lines
        self._line(at, lines.end(at, request_id, duration_ns, status))
        what = request_id, duration_ns, used_mib, init_ns, status, error_type, restore, tenant_id
        self._line(at, lines.report(at, *what))
        if self.telemetry is not None:
            self._publish(at, "report", lines.records.report(*what))

    def other(self, kind: str, level: str, record: dict[str, Any]) -> None:
        at = now_ms()
        self._line(at, self.lines.other(at, kind, level, record))
        if self.telemetry is not None:
            self._publish(at, kind, record)

    # --- the tail for X-Amz-Log-Type --------------------------------------------------------------------

    def begin_tail(self, wanted: bool) -> None:
        self._tail = collections.deque() if wanted else None
        self._tail_length = 0

    def _add_to_tail(self, line: str) -> None:
        """Only what can still be asked for is kept: a function may print without end. A character is a byte or more."""
        assert self._tail is not None
        self._tail.append(line)
        self._tail_length += len(line)
        while self._tail_length - len(self._tail[0]) >= LOG_TAIL_MAX_BYTES:
            self._tail_length -= len(self._tail.popleft())

    def take_tail(self) -> bytes | None:
        tail, self._tail = self._tail, None
        return None if tail is None else "".join(tail).encode()[-LOG_TAIL_MAX_BYTES:]

    # --- what is printed --------------------------------------------------------------------------------

    def _write(self, events: list[tuple[int, str]], source: str) -> None:
        for time_ms, message in events:
            self._sink.write(time_ms, message)
            if self._tail is not None:
                self._add_to_tail(message if message.endswith("\n") else message + "\n")
            if self.telemetry is not None:
                self.telemetry.publish(source, time_ms, source, message)

    def drain(self, descriptor: int, final: bool = False) -> None:
        """Read what the function wrote so far, so that it stands before the line that comes next."""
        try:
            # Mostly there is nothing: asking costs a third of a read that fails.
            fcntl.ioctl(descriptor, termios.FIONREAD, _waiting_bytes)
            if _waiting_bytes != _NOTHING:
                data = os.read(descriptor, _READ_BYTES)
                if data:
                    self._write(self._parser.feed(data, now_ms()), "function")
        except OSError:
            pass
        if final:
            self._write(self._parser.flush(now_ms()), "function")

    def end_line(self) -> None:
        """The invocation is over: an unfinished line of the function's is an event too."""
        self._write(self._parser.end_line(now_ms()), "function")

    def on_readable(self, descriptor: int) -> bool:
        """A reader's callback. False: readable with nothing to read, every writer is gone."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._write(self._parser.feed(data, now_ms()), "function")
        return bool(data)

    def on_extension_readable(self, descriptor: int) -> bool:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if self._extension_parser is None:
            self._extension_parser = LogParser()
        if data:
            self._write(self._extension_parser.feed(data, now_ms()), "extension")
        return bool(data)

"""One execution environment on this host: its sandbox, the runtime process of the moment, its log stream.

It carries out the scheduler's commands and turns what happens into facts. It decides nothing about requests; whatever
the runtime does (exits, is killed, closes its descriptors, writes garbage), the request it had ends in exactly one
`on_ended`, and the sandbox is either whole again (ResetDone, InitFailed) or gone (EnvironmentDied).

    start ──> waiting for a sandbox ──> Init ──> idle <──> busy
                                          │        reset: runtime killed, next dispatch starts a new one (reinit)
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import struct
import termios
import time
import uuid
from typing import TYPE_CHECKING, Any

from lambent.core.events import EnvironmentDied, EnvironmentReady, EnvironmentStarted, InitFailed, ResetDone
from lambent.model.function import VersionSpec
from lambent.model.invocation import Outcome
from lambent.model.limits import LOG_TAIL_MAX_BYTES, MIB, RESPONSE_MAX_BYTES
from lambent.wire.frames import Frame, FrameError, FrameKind, encode
from lambent.worker.interface import EnvironmentInfo, Invocation, InvocationResult, LogSink
from lambent.worker.link import FrameLink
from lambent.worker.log_pipe import LogParser
from lambent.worker.report import PlatformLines, error_body, exit_words

if TYPE_CHECKING:
    from lambent.worker.local import LocalWorker
    from lambent.worker.sandboxes import Sandbox

_log = logging.getLogger("lambent.worker")
#: The size of the pipe: all that can wait in it when an invocation ends.
_LOG_READ_BYTES = 65_536
#: When the memory peak is read again: after an invoke of this length (a shorter one can touch some 15 MiB at the most),
#: and after so much work in shorter ones.
_PEAK_INVOKE_NS = 3_000_000
_PEAK_AGE_NS = 25_000_000
_ANSWERS = frozenset((FrameKind.RESULT, FrameKind.ERROR, FrameKind.TOO_LARGE))
#: Answers to no running request that one runtime process may send before it is stopped.
_STALE_ANSWERS_MAX = 64
_NOTHING = bytearray(4)
_waiting_bytes = bytearray(4)  # written by FIONREAD; one thread
#: Exit code by which a runtime without a control group says that it ran out of its memory (bootstrap.py).
OUT_OF_MEMORY_EXIT = 137


class Environment:
    """See the module's head. Made by LocalWorker.start; all methods run on the event-loop thread."""

    __slots__ = (
        "_busy_since_ns",
        "_cold",
        "_deadline_epoch_ms",
        "_deadline_ns",
        "_exit_error",
        "_expired",
        "_generation",
        "_init_error",
        "_init_ns",
        "_init_started_ns",
        "_invocation",
        "_lines",
        "_link",
        "_logs",
        "_oom_kills",
        "_parser",
        "_peak_age_ns",
        "_peak_bytes",
        "_phase",
        "_reinit",
        "_reports_rss",
        "_reset_wanted",
        "_sandbox",
        "_stale_answers",
        "_stopping",
        "_tail",
        "_worker",
        "id",
        "spec",
        "stream_name",
    )

    def __init__(self, worker: LocalWorker, number: int, spec: VersionSpec) -> None:
        self.id = number
        self.spec = spec
        today = time.strftime("%Y/%m/%d", time.gmtime())
        # Beside others in a custom group the stream's name says whose it is.
        owner = "" if spec.log_group == f"/aws/lambda/{spec.key.name}" else spec.key.name
        self.stream_name = f"{today}/{owner}[{spec.version}]{uuid.uuid4().hex}"
        self._worker = worker
        self._lines = PlatformLines(spec)
        self._logs: LogSink = worker.log_streams.open(spec, self.stream_name)
        self._parser = LogParser()
        self._sandbox: Sandbox | None = None
        self._link: FrameLink | None = None
        self._generation = 0
        self._phase = "init"  # init | ready | gone: of the runtime process; dead: of the sandbox
        self._oom_kills = 0
        self._stale_answers = 0
        self._invocation: Invocation | None = None
        self._reinit = self._cold = False
        self._init_error: tuple[str, bytes] | None = None
        self._exit_error = ""
        self._init_ns = 0
        self._init_started_ns = self._busy_since_ns = 0
        self._deadline_epoch_ms = self._deadline_ns = 0
        self._reset_wanted = self._stopping = self._reports_rss = self._expired = False
        self._tail: list[str] | None = None
        self._peak_bytes = 0
        self._peak_age_ns = _PEAK_AGE_NS

    # --- starting ---------------------------------------------------------------------------------------

    def attach(self, sandbox: Sandbox) -> None:
        """The sandbox stands, empty: make it this version's and begin Init."""
        if self._stopping:
            self._worker.sandboxes.release(sandbox)
            return
        self._sandbox = sandbox
        self._reports_rss = sandbox.peak_fd < 0
        sandbox.on_message = self._on_message
        self._worker.loop.add_reader(sandbox.log_fd, self._on_log_readable)
        self._say(self._lines.init_start(_now_ms(), self._worker.runtime_version(sandbox)))
        warning = sandbox.zygote.choice.warning
        if warning:
            self._say(warning + "\n")
        if "boto3" in sandbox.zygote.missing:
            self._say(
                "LAMBENT_WARNING: this interpreter can not import boto3, whose current release needs Python 3.10; "
                "bundle an older one with the function.\n"
            )
        self._run(self._worker.assignment(self.spec, sandbox))

    def _run(self, assign: dict[str, Any] | None) -> None:
        """Start a runtime process in the sandbox."""
        assert self._sandbox is not None
        self._generation += 1
        self._phase = "init"
        self._init_error = None
        self._exit_error = ""
        self._stale_answers = 0
        self._expired = False
        self._peak_bytes, self._peak_age_ns = 0, _PEAK_AGE_NS
        self._init_started_ns = time.monotonic_ns()
        self._open_link()
        message = {
            "op": "run",
            "generation": self._generation,
            "assign": assign,
            "runtime": self._worker.runtime_order(self, self._sandbox),
        }
        self._sandbox.send(message)
        if not self._reinit:
            self._worker.fact(EnvironmentStarted(self.id))

    def _open_link(self) -> None:
        """A parked sandbox came with its link; a runtime process made anew brings one with `started`."""
        link = self._sandbox.take_link() if self._sandbox is not None else None
        if link is not None:
            self._link = FrameLink(self._worker.loop, link, self._on_frame, self._on_link_lost)

    # --- the sandbox's messages -------------------------------------------------------------------------

    def _on_message(self, message: dict[str, Any] | None) -> None:
        if message is None:
            self._die()
        elif message["op"] == "failed":
            self._die()  # it could not be made this version's: nothing of it is of use
        elif message["op"] == "started" and message["generation"] == self._generation:
            self._open_link()
        elif message["op"] == "exited" and message["generation"] == self._generation:
            self._exited(message["status"], message["out_of_memory"])

    def _exited(self, status: int, out_of_memory: bool) -> None:
        """The runtime process is gone, and all that it started."""
        if self._phase == "gone":
            return
        in_init = self._phase == "init"
        self._phase = "gone"
        if self._link is not None:
            self._link.close()
            self._link = None
        self._drain_logs(final=True)
        if self._reset_wanted:
            self._reset_wanted = False
            self._worker.fact(ResetDone(self.id))
            return
        error_type, body = self._init_error or self._exit_reason(status, out_of_memory)
        now_ms = _now_ms()
        if in_init:
            took_ns = time.monotonic_ns() - self._init_started_ns
            shown = error_type if error_type.startswith(("Runtime.", "Function.")) else "Runtime.Unknown"
            phase = "invoke" if self._reinit else "init"
            self._say(self._lines.init_report(now_ms, took_ns, phase, "error", shown))
            if not self._reinit:
                self._worker.fact(InitFailed(self.id))
                return
            if self._invocation is not None:
                self._begin(self._invocation)
            error_type = shown
        if self._invocation is not None:
            outcome = Outcome.INIT_ERROR if in_init else Outcome.RUNTIME_EXIT
            self._finish(outcome, body, "error", error_type)
        else:
            self._die()  # it ended between requests: there is nothing to give back

    def _exit_reason(self, status: int, out_of_memory: bool) -> tuple[str, bytes]:
        request_id = self._invocation.request_id if self._invocation else ""
        if self._exit_error:
            words = self._exit_error
        elif out_of_memory or self._out_of_memory(status):
            return "Runtime.OutOfMemory", error_body(
                "Runtime.OutOfMemory",
                f"RequestId: {request_id} Error: Runtime exited with error: signal: killed",
            )
        else:
            words = exit_words(status)
        return "Runtime.ExitError", error_body("Runtime.ExitError", f"RequestId: {request_id} Error: {words}")

    def _out_of_memory(self, status: int) -> bool:
        """Did the kernel kill for memory? The control group counts; without one the runtime says so by its code."""
        if not self._worker.sandboxes.has_cgroups:
            return status == OUT_OF_MEMORY_EXIT << 8
        return status & 0x7F == signal.SIGKILL and self._new_oom_kills()

    def _new_oom_kills(self) -> bool:
        sandbox = self._sandbox
        if sandbox is None or sandbox.events_fd < 0:
            return False
        before = self._oom_kills
        for line in os.pread(sandbox.events_fd, 1_024, 0).splitlines():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill":
                self._oom_kills = int(count)
        return self._oom_kills > before

    # --- the runtime's frames ---------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.kind
        if kind in _ANSWERS:
            self._answered(kind, frame)
        elif kind == FrameKind.READY and self._phase == "init":
            self._ready()
        elif kind == FrameKind.INIT_ERROR and self._phase == "init":
            self._init_error = (frame.header.decode("utf-8", "replace"), frame.payload)
        else:
            self._on_link_lost(FrameError(f"a frame of kind {kind} where none of that kind can come"))

    def _answered(self, kind: int, frame: Frame) -> None:
        """An answer counts only for the request that is running: a forked child that returns from the handler too
        answers again, maybe while the next request runs. AWS refuses such answers and goes on; so do we, for a while.
        """
        invocation = self._invocation
        running = invocation.request_id.encode() if invocation is not None and self._phase == "ready" else None
        if running is None or not frame.header.startswith(running):
            self._stale_answers += 1
            if self._stale_answers > _STALE_ANSWERS_MAX:
                self._on_link_lost(FrameError(f"{self._stale_answers} answers to requests that are not running"))
            return
        if self._reports_rss:
            self._note_rss(frame.header)
        if kind == FrameKind.RESULT:
            self._finish(Outcome.SUCCESS, frame.payload, "success", None)
        elif kind == FrameKind.ERROR:
            self._finish(Outcome.ERROR, frame.payload, "error", None)
        else:
            message = f"Response payload size exceeded maximum allowed payload size ({RESPONSE_MAX_BYTES} bytes)."
            # The client reads errorMessage first here, as AWS writes it.
            body = b'{"errorMessage":"%s","errorType":"Function.ResponseSizeTooLarge"}' % message.encode()
            self._finish(Outcome.ERROR, body, "error", "Function.ResponseSizeTooLarge")

    def _note_rss(self, header: bytes) -> None:
        """Without a control group the runtime tells its peak resident size, in KiB, as the header's last field."""
        _, _, kib = header.rpartition(b"\0")
        if kib.isdigit():
            self._peak_bytes = max(self._peak_bytes, int(kib[:12]) * 1_024)

    def _on_link_lost(self, error: FrameError | None) -> None:
        """The link is of no use any more. The runtime usually has exited, which the sandbox will say; if it only closed
        its descriptors or wrote garbage, it is killed and the same message comes."""
        if self._phase == "gone" or self._link is None:
            return
        if error is not None:
            self._link.close()
            self._exit_error = "Runtime exited without providing a reason"
            self._say(f"LAMBENT: the runtime was stopped because it broke the protocol of its link: {error}\n")
            self._kill()
        else:
            generation = self._generation
            self._worker.loop.call_later(0.05, self._kill_if_still, generation)

    def _kill_if_still(self, generation: int) -> None:
        """The link closed and the process did not end by itself: it closed its descriptors and lives on."""
        if generation == self._generation and self._phase != "gone" and not self._stopping:
            self._exit_error = self._exit_error or "Runtime exited without providing a reason"
            self._kill()

    def _kill(self) -> None:
        if self._sandbox is not None:
            self._sandbox.send({"op": "kill"})

    def _ready(self) -> None:
        took_ns = time.monotonic_ns() - self._init_started_ns
        self._phase = "ready"
        self._drain_logs()
        if self._reinit:
            self._reinit = False
            if self._invocation is not None:
                self._begin(self._invocation)
                self._send_invocation(self._invocation)
            return
        self._init_ns = took_ns
        self._worker.fact(EnvironmentReady(self.id))

    # --- one invocation ---------------------------------------------------------------------------------

    def dispatch(self, invocation: Invocation, deadline_ns: int, cold: bool, reinit: bool) -> None:
        now_ns = time.monotonic_ns()
        self._invocation = invocation
        self._busy_since_ns = now_ns
        self._cold = cold
        self._deadline_ns = deadline_ns
        self._deadline_epoch_ms = (time.time_ns() + deadline_ns - now_ns) // 1_000_000
        self._tail = [] if invocation.wants_tail else None
        if reinit:
            self._reinit = True
            self._run(None)
            return
        self._begin(invocation)
        self._send_invocation(invocation)

    def _begin(self, invocation: Invocation) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._event(now_ms, self._lines.start(now_ms, invocation.request_id))

    def _send_invocation(self, invocation: Invocation) -> None:
        header = (
            f"{invocation.request_id}\0{self._deadline_epoch_ms}\0{invocation.arn}\0{invocation.trace_id}\0"
            f"{invocation.client_context}\0{invocation.cognito_identity}\0{invocation.tenant_id}"
        ).encode()
        try:
            frame = encode(FrameKind.INVOKE, header, invocation.payload)
        except struct.error:  # a header over 64 KiB cannot pass the listener; refuse rather than hang
            self._exit_error = "request header too large"
            self._kill()
            return
        if self._link is not None:
            self._link.send(frame)

    def _finish(self, outcome: Outcome, payload: bytes, status: str, error_type: str | None) -> None:
        """The invocation is over: END, REPORT, and the answer. Past its deadline it is the scheduler's: see expire."""
        invocation = self._invocation
        assert invocation is not None
        now_ns = time.monotonic_ns()
        if now_ns >= self._deadline_ns:
            return
        self._drain_logs()
        self._write(self._parser.end_line(_now_ms()))
        self._close_report(status, error_type, now_ns - self._busy_since_ns)
        self._invocation = None
        self._reinit = False
        result = InvocationResult(payload, outcome is not Outcome.SUCCESS, self._take_tail())
        self._worker.listener.on_ended(self.id, invocation.request, outcome, result)

    def expire(self, request_id: str, timeout_s: float) -> InvocationResult:
        """The function timeout passed. The caller resets or stops this environment right after."""
        message = f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds"
        body = error_body("Sandbox.Timedout", message)
        invocation = self._invocation
        if invocation is None:  # its answer crossed the deadline on the way to the scheduler
            return InvocationResult(body, True, self._take_tail())
        self._drain_logs(final=True)
        if self._phase == "init" and self._reinit:
            took_ns = time.monotonic_ns() - self._init_started_ns
            self._say(self._lines.init_report(_now_ms(), took_ns, "invoke", "timeout", None))
            self._begin(invocation)
        self._close_report("timeout", None, int(timeout_s * 1e9))
        self._invocation = None
        self._reinit = False
        self._expired = True
        return InvocationResult(body, True, self._take_tail())

    def _close_report(self, status: str, error_type: str | None, duration_ns: int) -> None:
        invocation = self._invocation
        assert invocation is not None
        now_ms = time.time_ns() // 1_000_000
        request_id = invocation.request_id
        self._peak_age_ns += _PEAK_AGE_NS if duration_ns >= _PEAK_INVOKE_NS else duration_ns
        init_ns = self._init_ns if self._cold else None
        used_mib = self._memory_used_mib(error_type == "Runtime.OutOfMemory")
        lines = self._lines
        self._event(now_ms, lines.end(now_ms, request_id, duration_ns, status))
        self._event(now_ms, lines.report(now_ms, request_id, duration_ns, used_mib, init_ns, status, error_type))

    def _take_tail(self) -> bytes | None:
        tail, self._tail = self._tail, None
        return None if tail is None else "".join(tail).encode()[-LOG_TAIL_MAX_BYTES:]

    def _memory_used_mib(self, at_limit: bool) -> int:
        """Max Memory Used: the peak of the control group, and the shared interpreter that it does not count."""
        sandbox = self._sandbox
        if self._reports_rss or sandbox is None:
            used = -(-self._peak_bytes // MIB)
        else:
            if self._peak_age_ns >= _PEAK_AGE_NS or at_limit:
                self._peak_age_ns = 0
                self._peak_bytes = self._read_peak()
            used = -(-(self._peak_bytes + sandbox.zygote.baseline_bytes) // MIB)
        return self.spec.memory_mib if at_limit else min(used, self.spec.memory_mib)

    def _read_peak(self) -> int:
        sandbox = self._sandbox
        if sandbox is None or sandbox.peak_fd < 0:
            return 0
        try:
            return int(os.pread(sandbox.peak_fd, 32, 0))
        except (OSError, ValueError):
            return self._peak_bytes

    # --- ending -----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Kill the runtime process; ResetDone follows. Told during Init, it is because Init took too long."""
        if self._phase == "init" and not self._expired:
            took_ns = time.monotonic_ns() - self._init_started_ns
            self._say(self._lines.init_report(_now_ms(), took_ns, "init", "timeout", None))
        if self._phase == "gone":
            self._worker.fact(ResetDone(self.id))
            return
        self._reset_wanted = True
        self._reinit = False
        self._kill()

    def stop(self) -> None:
        """End it all; EnvironmentDied follows."""
        self._stopping = True
        if self._sandbox is not None:
            self._die()
        else:
            self._worker.forget(self)
            self._worker.fact(EnvironmentDied(self.id))

    def _die(self) -> None:
        if self._phase == "dead":
            return
        self._phase = "dead"
        self._stopping = True
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._invocation is not None:
            self._lose_invocation(self._invocation)
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            self._read_logs(sandbox.log_fd)
            self._write(self._parser.flush(_now_ms()))
            self._worker.loop.remove_reader(sandbox.log_fd)
            self._worker.sandboxes.release(sandbox)
        self._worker.forget(self)
        self._worker.fact(EnvironmentDied(self.id))

    def _lose_invocation(self, invocation: Invocation) -> None:
        """The whole sandbox went away under a request: out of memory in its first process, or killed from outside."""
        kind, words = "Sandbox.Failure", "The execution environment was lost"
        if self._new_oom_kills():
            kind, words = "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"
        body = error_body(kind, f"RequestId: {invocation.request_id} Error: {words}")
        self._finish(Outcome.RUNTIME_EXIT, body, "error", kind)

    # --- logs -------------------------------------------------------------------------------------------

    def _event(self, now_ms: int, line: str | None) -> None:
        if line is not None:
            self._logs.write(now_ms, line)
            if self._tail is not None:
                self._tail.append(line)

    def _say(self, line: str | None) -> None:
        self._event(_now_ms(), line)

    def _write(self, events: list[tuple[int, str]]) -> None:
        for time_ms, message in events:
            self._logs.write(time_ms, message)
            if self._tail is not None:
                self._tail.append(message if message.endswith("\n") else message + "\n")

    def _drain_logs(self, final: bool = False) -> None:
        """Read what the function wrote so far, so that it stands before the line that comes next."""
        if self._sandbox is not None:
            self._read_logs(self._sandbox.log_fd)
        if final:
            self._write(self._parser.flush(_now_ms()))

    def _read_logs(self, descriptor: int) -> None:
        try:
            # Mostly there is nothing: asking costs a third of a read that fails.
            fcntl.ioctl(descriptor, termios.FIONREAD, _waiting_bytes)
            if _waiting_bytes == _NOTHING:
                return
            data = os.read(descriptor, _LOG_READ_BYTES)
        except OSError:
            return
        if data:
            self._write(self._parser.feed(data, _now_ms()))

    def _on_log_readable(self) -> None:
        """The reader's callback: readable with nothing to read means that every writer is gone."""
        if self._sandbox is None:
            return
        descriptor = self._sandbox.log_fd
        try:
            data = os.read(descriptor, _LOG_READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._write(self._parser.feed(data, _now_ms()))
        else:
            self._worker.loop.remove_reader(descriptor)  # the sandbox's end follows

    def info(self) -> EnvironmentInfo:
        sandbox = self._sandbox
        shared = sandbox.zygote.baseline_bytes if sandbox is not None else 0
        return EnvironmentInfo(self.spec.log_group, self.stream_name, self._read_peak() + shared)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""Several worker processes behind one environment's HTTP Runtime API (Lambda Managed Instances).

As on AWS each worker is a fork that imports the function for itself and takes requests one at a time; /tmp and what the
environment may use are shared. This process waits, and ends as soon as one worker does and in the same way: the
platform then ends the requests of all and replaces the environment.
"""

import fcntl
import io
import os
import signal
import sys
import tempfile
import threading

#: A line that is longer is written in pieces.
_LINE_MAX_BYTES = 1 << 20


class WholeLines(io.RawIOBase):
    """Standard output of a worker: whole lines, which are not mixed with those of other workers. The lock ends with the
    process that holds it."""

    def __init__(self, descriptor, locked):
        self._descriptor = descriptor
        self._locked = locked
        self._threads = threading.RLock()
        self._held = b""  # of a line that has not ended

    def writable(self):
        return True

    def fileno(self):
        return self._descriptor

    def write(self, data):
        data = bytes(data)
        with self._threads:
            end = data.rfind(b"\n") + 1
            if end:
                self._emit(self._held + data[:end])
                self._held = data[end:]
            else:
                self._held += data
                if len(self._held) > _LINE_MAX_BYTES:
                    self.end_line()
        return len(data)

    def end_line(self):
        """What there is of a line is a line."""
        with self._threads:
            if self._held:
                held, self._held = self._held, b""
                self._emit(held + b"\n")

    def _emit(self, lines):
        rest = memoryview(lines)
        fcntl.lockf(self._locked, fcntl.LOCK_EX)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        finally:
            fcntl.lockf(self._locked, fcntl.LOCK_UN)


def open_stream(descriptor, locked):
    """A text stream that writes lines as they end."""
    return io.TextIOWrapper(
        WholeLines(descriptor, locked), encoding="utf-8", errors="backslashreplace", write_through=True
    )


def end_line():
    """A request is over: what it has left unfinished is a line too."""
    for stream in (sys.stdout, sys.stderr):
        raw = getattr(stream, "buffer", None)
        if isinstance(raw, WholeLines):  # else the function has put something else there
            raw.end_line()


def run(count, work):
    """Have `count` processes do `work()`, which does not return; never returns."""
    locked = tempfile.TemporaryFile(buffering=0)
    pids = set()
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            _work(work, locked.fileno())
        pids.add(pid)
    _forward_sigterm(pids)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid in pids:
            _end_as(status)


def _work(work, locked):
    status = 1
    try:
        sys.stdout, sys.stderr = open_stream(1, locked), open_stream(2, locked)
        work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        end_line()
        os._exit(status)


def _forward_sigterm(pids):
    def handle(number, _frame):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    signal.signal(signal.SIGTERM, handle)


def _end_as(status):
    """Exit as a child did, by the same signal or with its code."""
    number = status & 0x7F
    if number:
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), number)
    os._exit(status >> 8 if not number else 1)

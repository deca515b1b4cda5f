"""`lambent top`: a live view of the server in the terminal, frames for pipes, or JSON.

The server is asked on a thread, so that keys and changes of the terminal's size are answered at once; everything that
is shown comes from top_frame. One thread looks at the keyboard, a pipe tells it of answers and signals.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
import urllib.error
import urllib.request
from collections.abc import Iterator

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live

from lambent.cli.client import unreachable
from lambent.cli.top_frame import SORTS, Sample, View, chosen, frame, look

_PATIENCE_S = 5
_decode = msgspec.json.Decoder(Sample).decode


def top(endpoint: str, interval_s: float, once: bool, pattern: str | None, sort: str, as_json: bool) -> int:
    """Until q or SIGINT; the exit status."""
    if sort not in SORTS:
        raise typer.BadParameter(f"{sort}: not one of {', '.join(SORTS)}", param_hint="--sort")
    try:
        before = ask(endpoint)
    except (urllib.error.URLError, OSError) as error:
        raise unreachable(endpoint) from error
    except msgspec.DecodeError as error:
        typer.echo(f"lambent: {endpoint} is not a Lambent of this version: {error}", err=True)
        return 1
    live = not (once or as_json) and sys.stdout.isatty() and sys.stdin.isatty()
    try:
        if live:
            _Screen(endpoint, interval_s, pattern, sort, before).run()
        else:
            _print(endpoint, interval_s, once, pattern, sort, as_json, before)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the interpreter flush into it
        return 0
    except (urllib.error.URLError, OSError) as error:
        raise unreachable(endpoint) from error
    return 0


def ask(endpoint: str) -> Sample:
    """Raises OSError, msgspec.DecodeError."""
    with urllib.request.urlopen(f"{endpoint.rstrip('/')}/_lambent/top", timeout=_PATIENCE_S) as answer:
        return _decode(answer.read())


def _print(
    endpoint: str, interval_s: float, once: bool, pattern: str | None, sort: str, as_json: bool, before: Sample
) -> None:
    """Frames or objects one after the other."""
    while True:
        time.sleep(interval_s)
        now = ask(endpoint)
        view = look(before, now)
        before = now
        if as_json:
            view.functions = chosen(view.functions, pattern, sort)
            sys.stdout.write(json.dumps({"time_s": round(time.time(), 3), **msgspec.to_builtins(view)}) + "\n")
        else:
            console = Console(width=shutil.get_terminal_size((132, 50)).columns)  # COLUMNS, where there is no terminal
            for line in frame(view, console.width, title=f"Lambent {endpoint}", sort=sort, pattern=pattern):
                console.print(line, crop=True, soft_wrap=False)
        sys.stdout.flush()
        if once:
            return


class _Screen:
    """The terminal while it is ours."""

    def __init__(self, endpoint: str, interval_s: float, pattern: str | None, sort: str, first: Sample) -> None:
        self._endpoint = endpoint
        self._interval_s = interval_s
        self._pattern = pattern
        self._sort = sort
        self._scrolled = 0
        self._before = first
        self._view: View = look(None, first)
        self._notice = ""
        self._console = Console()
        self._asking = False
        self._answers: queue.SimpleQueue[Sample | Exception] = queue.SimpleQueue()

    def run(self) -> None:
        wake_out, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        with (
            Live(console=self._console, screen=True, auto_refresh=False) as live,
            _keyboard(sys.stdin.fileno()),
            _resizing(wake_in),
        ):
            self._draw(live)
            due_s = time.monotonic() + self._interval_s
            while True:
                ready, _, _ = select.select([sys.stdin, wake_out], [], [], max(0.0, due_s - time.monotonic()))
                if sys.stdin in ready and not self._keys(os.read(sys.stdin.fileno(), 64)):
                    return
                if wake_out in ready:
                    os.read(wake_out, 64)
                self._take_answer()
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + self._interval_s
                    if not self._asking:
                        self._asking = True
                        # A daemon: nobody who quits waits for a server that hangs.
                        threading.Thread(target=self._ask, args=(wake_in,), daemon=True).start()
                if ready:
                    self._draw(live)

    def _ask(self, wake_in: int) -> None:
        """On a thread of its own."""
        try:
            self._answers.put(ask(self._endpoint))
        except Exception as error:  # told in _take_answer
            self._answers.put(error)
        _poke(wake_in)

    def _take_answer(self) -> None:
        if self._answers.empty():
            return
        self._asking = False
        now = self._answers.get()
        if isinstance(now, Sample):
            self._notice = ""
            self._view = look(self._before, now)
            self._before = now
        elif isinstance(now, OSError | msgspec.DecodeError | http.client.HTTPException):
            reason = getattr(now, "reason", now)
            self._notice = f"no answer from {self._endpoint}: {reason}; still trying, q quits"
        else:
            raise now

    def _keys(self, pressed: bytes) -> bool:
        """False: quit."""
        if not pressed:  # the terminal has gone
            return False
        pressed = pressed.replace(b"\x1b[A", b"k").replace(b"\x1b[B", b"j")  # arrows
        for key in pressed.decode(errors="replace"):
            if key in "qQ\x03":
                return False
            if key == "s":
                names = list(SORTS)
                self._sort = names[(names.index(self._sort) + 1) % len(names)]
                self._scrolled = 0
            elif key == "j":
                last = len(chosen(self._view.functions, self._pattern, self._sort)) - 1
                self._scrolled = max(0, min(last, self._scrolled + 1))
            elif key == "k":
                self._scrolled = max(0, self._scrolled - 1)
        return True

    def _draw(self, live: Live) -> None:
        width, height = self._console.size
        lines = frame(
            self._view,
            width,
            height,
            title=f"Lambent {self._endpoint}",
            sort=self._sort,
            pattern=self._pattern,
            first=self._scrolled,
            notice=self._notice,
        )
        live.update(Group(*lines), refresh=True)


def _poke(wake_in: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(wake_in, b".")


@contextlib.contextmanager
def _keyboard(fd: int) -> Iterator[None]:
    """Keys come one by one and are not shown; the terminal is as before at the end."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing(wake_in: int) -> Iterator[None]:
    before = signal.signal(signal.SIGWINCH, lambda *_: _poke(wake_in))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)

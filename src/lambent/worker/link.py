"""The frame link to one runtime process: two non-blocking pipes, one write per request and one read per answer.

Plain calls on the event loop rather than a transport: the request leaves in the same turn in which it came, and an
answer that came whole is handed on without being copied.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from lambent.wire.frames import Frame, FrameError, FrameReader

_READ_BYTES = 262_144


class FrameLink:
    """`on_frame` gets each frame; `on_lost` is called once, with a FrameError or None, when no more can come."""

    __slots__ = ("_answers_fd", "_loop", "_on_frame", "_on_lost", "_reader", "_requests_fd", "_unsent")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptors: tuple[int, int],
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[FrameError | None], None],
    ) -> None:
        """`descriptors`: what can be read from the runtime, what can be written to it. They are closed here."""
        self._loop = loop
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._unsent = b""
        self._answers_fd, self._requests_fd = descriptors
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        loop.add_reader(self._answers_fd, self._readable)

    def send(self, frame: bytes) -> None:
        """Send now what the pipe takes, the rest when it takes more."""
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = os.write(self._requests_fd, frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # nobody reads any more; the reader side will see the end
        if sent < len(frame):
            self._unsent = frame[sent:]
            self._loop.add_writer(self._requests_fd, self._writable)

    def _writable(self) -> None:
        try:
            sent = os.write(self._requests_fd, self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._requests_fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._answers_fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(None)
            return
        try:
            frames = self._reader.feed(data)
        except FrameError as error:
            self._lose(error)
            return
        for frame in frames:
            if self._answers_fd < 0:  # closed over the frame before
                return
            self._on_frame(frame)

    def drain(self) -> None:
        """Take what has come already: its sender may be gone, and what it said counts."""
        if self._answers_fd >= 0:
            self._readable()

    def _lose(self, error: FrameError | None) -> None:
        self.close()
        self._on_lost(error)

    def close(self) -> None:
        """Any number of times."""
        if self._answers_fd < 0:
            return
        self._loop.remove_reader(self._answers_fd)
        if self._unsent:
            self._loop.remove_writer(self._requests_fd)
        os.close(self._answers_fd)
        os.close(self._requests_fd)
        self._answers_fd = self._requests_fd = -1
        self._unsent = b""

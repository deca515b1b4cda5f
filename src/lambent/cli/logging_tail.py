"""Follows a function's log group and prints what comes."""

from __future__ import annotations

import threading
import time
from typing import Any

from lambent.cli.client import client
from lambent.cli.reporting import Reporter

_POLL_S = 0.12
#: Streams are written side by side: look back so far, and skip what was shown.
_OVERLAP_MS = 10_000


class LogTail:
    """A thread from `start` to `join`; `stop` ends it after one more look."""

    def __init__(self, endpoint: str, reporter: Reporter, stop: threading.Event) -> None:
        self._endpoint = endpoint
        self._reporter = reporter
        self._stop = stop
        self._thread: threading.Thread | None = None
        self._start_ms = int(time.time() * 1000)
        self._seen: dict[str, int] = {}

    def start(self, group: str) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(group,), daemon=True)
            self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(2)

    def _run(self, group: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        reader = client("logs", self._endpoint)
        while True:
            ends = self._stop.wait(_POLL_S)
            try:
                self._look(reader, group)
            except (BotoCoreError, ClientError, OSError):
                pass  # the group comes with the first invocation; a server that is gone is told by who deploys
            if ends:
                return

    def _look(self, reader: Any, group: str) -> None:
        newest_ms = 0
        arguments: dict[str, Any] = {"logGroupName": group, "startTime": self._start_ms}
        while True:
            page = reader.filter_log_events(**arguments)
            for event in page["events"]:
                newest_ms = max(newest_ms, event["timestamp"])
                if event["eventId"] not in self._seen:
                    self._seen[event["eventId"]] = event["timestamp"]
                    self._reporter.log(event["timestamp"], event["logStreamName"], event["message"])
            if "nextToken" not in page:
                break
            arguments["nextToken"] = page["nextToken"]
        if newest_ms - _OVERLAP_MS > self._start_ms:
            self._start_ms = newest_ms - _OVERLAP_MS
            self._seen = {each: at_ms for each, at_ms in self._seen.items() if at_ms >= self._start_ms}

"""CloudWatch REPORT lines as a workload: what a function really did, taken from its logs.

For: `--reports FILE`. It must not ask anything but the file. Outcomes: arrivals in order, or WorkloadError with one
line.

Three forms are read: JSON of `aws logs filter-log-events` (an object with "events"), the same as one JSON object a
line (`lambent logs --json`), and text of `aws logs tail`, where a line begins with an ISO 8601 time. Other lines are
passed over. A REPORT is written when the request ends, so a request arrived its Duration (and Init Duration) earlier;
what lies between end and time stamp, some milliseconds, is not known. Requests that were warm do not say how long their
Init would have been: they get the mean of those that do. The file is held in memory, because the order of ends is not
the order of arrivals.
"""

from __future__ import annotations

import datetime
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lambent.model.limits import NS_PER_MS, NS_PER_S
from lambent.plan.workload import Arrival, WorkloadError, open_text

_REPORT = re.compile(r"REPORT RequestId: \S+\s+Duration: ([0-9.]+) ms")
_INIT = re.compile(r"Init Duration: ([0-9.]+) ms")
_MEMORY = re.compile(r"Memory Size: ([0-9]+) MB")
_TIME = re.compile(r"\s*(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)")


def read(path: Path, init_ns: int = 0) -> tuple[list[Arrival], int | None]:
    """The arrivals of one function, the first one at 0, and its memory in MB. `init_ns` if no line tells an Init."""
    found: list[tuple[int, int, int | None]] = []
    memory_mib: int | None = None
    try:
        with open_text(path) as file:
            for end_ns, message in _messages(file.read()):
                report = _REPORT.search(message)
                if report is None:
                    continue
                init = _INIT.search(message)
                memory = _MEMORY.search(message)
                memory_mib = int(memory[1]) if memory else memory_mib
                duration_ns = round(float(report[1]) * NS_PER_MS)
                cold_ns = None if init is None else round(float(init[1]) * NS_PER_MS)
                found.append((end_ns - duration_ns - (cold_ns or 0), duration_ns, cold_ns))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from error
    if not found:
        raise WorkloadError(f"{path}: no REPORT line with a time was found")
    found.sort(key=lambda each: each[0])
    inits = [cold_ns for _, _, cold_ns in found if cold_ns is not None]
    mean_ns = sum(inits) // len(inits) if inits else init_ns
    first_ns = found[0][0]
    return [(at_ns - first_ns, d_ns, mean_ns if c_ns is None else c_ns, 0) for at_ns, d_ns, c_ns in found], memory_mib


def _messages(text: str) -> Iterator[tuple[int, str]]:
    """When it was written, and what."""
    if text.lstrip().startswith("{"):
        try:
            whole = json.loads(text)
            events = whole.get("events", [whole])
        except ValueError:
            events = [json.loads(line) for line in text.splitlines() if line.strip()]
        for event in events:
            yield from _event(event)
        return
    for line in text.splitlines():
        time = _TIME.match(line)
        if time is not None and "REPORT" in line:
            yield _nanoseconds(time[1]), line


def _event(event: Any) -> Iterator[tuple[int, str]]:
    if not isinstance(event, dict):
        raise ValueError("a log event is no JSON object")
    stamp, message = event.get("timestamp"), event.get("message")
    if isinstance(stamp, int) and isinstance(message, str):
        yield stamp * NS_PER_MS, message


def _nanoseconds(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    since = moment - datetime.datetime.fromtimestamp(0, datetime.UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1_000

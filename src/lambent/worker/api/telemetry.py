"""The Telemetry API, 2022-07-01, and the Logs API, 2020-08-15: subscriptions, their buffers, and what is dropped.

A record is encoded once for each subscriber (schemas differ), gathered until the subscription's number of items, bytes
or time is reached, and delivered (`delivery.py`). What a slow subscriber has not taken is bounded; past the bound
records are dropped, and one platform.logsDropped tells how many. Until the end of Init, records are also kept for
extensions that subscribe later in the same Init.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from lambent.worker.api.connection import Connection, Request, answer, error_answer
from lambent.worker.api.delivery import Delivery
from lambent.worker.api.extensions import Extension
from lambent.worker.api.interface import ApiOwner
from lambent.worker.api.subscription import SubscriptionError, Wanted, read

#: Waiting for one subscriber, batch on its way included; four of the largest batches.
UNSENT_MAX_BYTES = 4_194_304
#: Records of one Init, kept for those who subscribe later in it.
EARLY_MAX = 1_000
EARLY_MAX_BYTES = 262_144
#: AWS's words.
DROP_REASON = "Consumer seems to have fallen behind as it has not acknowledged receipt of logs."
#: Platform events of the Logs API; it knows no others.
_LOGS_KINDS = frozenset(("platform.start", "platform.extension", "platform.logsDropped"))
#: Told by the length of a record: its text, and what JSON puts around it.
_OVERHEAD_BYTES = 96

_encode = msgspec.json.Encoder().encode
_second = -1
_second_text = ""


def rfc3339(time_ms: int) -> str:
    """Milliseconds since 1970 as in `2022-10-12T00:00:15.064Z`."""
    global _second, _second_text
    second, millisecond = divmod(time_ms, 1_000)
    if second != _second:
        _second, _second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_second_text}.{millisecond:03d}Z"


class Surroundings(Protocol):
    """What telemetry needs of the API as a whole."""

    @property
    def is_subscription_open(self) -> bool: ...

    def is_idle(self) -> bool:
        """May the processes of the environment be frozen now?"""

    def identify(self, request: Request) -> Extension | bytes: ...


class Subscription:
    """One subscriber: records wait in `_buffer` until they make a batch, batches in `_batches` for delivery."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wanted: Wanted,
        address: str,
        is_idle: Callable[[], bool],
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> None:
        self.wanted = wanted
        self._loop = loop
        head = None
        if wanted.is_http:
            head = (
                f"{wanted.method} {wanted.path} HTTP/1.1\r\nHost: {wanted.host}:{wanted.port}\r\n"
                "Content-Type: application/json\r\nContent-Length: "
            ).encode()
        self._delivery = Delivery(loop, (address, wanted.port), head, self._delivered, is_idle, may_deliver)
        self._buffer: list[bytes] = []
        self._buffer_bytes = 0
        self._batches: collections.deque[list[bytes]] = collections.deque(maxlen=UNSENT_MAX_BYTES)
        self._on_its_way: list[bytes] = []
        self._unsent_bytes = 0  # of all three
        self._dropped_records = self._dropped_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, source: str, time_ms: int, kind: str, record: Any) -> None:
        if source not in self.wanted.sources:
            return
        for shown_kind, shown in self._shown(kind, record):
            self._put(_encode({"time": rfc3339(time_ms), "type": shown_kind, "record": shown}))

    def _shown(self, kind: str, record: Any) -> list[tuple[str, Any]]:
        """The record in the words of this subscriber's API and schema."""
        wanted = self.wanted
        if not kind.startswith("platform."):
            if wanted.schema < "2022-12-13" and not isinstance(record, str):
                record = _encode(record).decode()
            return [(kind, record)]
        if not wanted.is_logs_api or kind in _LOGS_KINDS:
            return [(kind, record)]
        if kind == "platform.telemetrySubscription":
            return [("platform.logsSubscription", record)]
        if kind == "platform.runtimeDone" and wanted.schema >= "2021-03-18":
            return [(kind, {"requestId": record.get("requestId"), "status": record.get("status")})]
        if kind == "platform.report":
            request_id = record.get("requestId")
            told = {"requestId": request_id, "metrics": record.get("metrics")}
            return [("platform.end", {"requestId": request_id}), (kind, told)]
        return []

    def _put(self, data: bytes) -> None:
        if self._unsent_bytes + len(data) > UNSENT_MAX_BYTES:
            self._dropped_records += 1
            self._dropped_bytes += len(data)
            return
        wanted = self.wanted
        if self._buffer and self._buffer_bytes + len(data) > wanted.bytes_max:
            self.flush()
        self._buffer.append(data)
        self._buffer_bytes += len(data)
        self._unsent_bytes += len(data)
        if len(self._buffer) >= wanted.items_max or self._buffer_bytes >= wanted.bytes_max:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(wanted.timeout_ms / 1_000, self.flush)

    def flush(self) -> None:
        """Make a batch of what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._buffer:
            self._batches.append(self._buffer)
            self._buffer = []
            self._buffer_bytes = 0
        self._send()

    def _send(self) -> None:
        if self._delivery.is_busy or not self._batches:
            return
        batch = self._on_its_way = self._batches.popleft()
        if self.wanted.is_http:
            self._delivery.send(b"[" + b",".join(batch) + b"]")
        else:
            self._delivery.send(b"\n".join(batch) + b"\n")

    def _delivered(self, delivered: bool) -> None:
        batch, self._on_its_way = self._on_its_way, []
        byte_count = sum(map(len, batch))
        self._unsent_bytes -= byte_count
        if not delivered:
            self._dropped_records += len(batch)
            self._dropped_bytes += byte_count
        if self._dropped_records and delivered:
            self._tell_dropped()
        self._send()

    def _tell_dropped(self) -> None:
        """The subscriber takes records again: tell it what it has missed."""
        told = {
            "reason": DROP_REASON,
            "droppedRecords": self._dropped_records,
            "droppedBytes": self._dropped_bytes,
        }
        self._dropped_records = self._dropped_bytes = 0
        record = {"time": rfc3339(time.time_ns() // 1_000_000), "type": "platform.logsDropped", "record": told}
        self._put(_encode(record))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._delivery.close()
        self._buffer = []
        self._batches.clear()


class Telemetry:
    """All subscriptions of the environment of the moment."""

    __slots__ = (
        "_address", "_around", "_early", "_early_bytes", "_kind", "_loop", "_may_deliver", "_own_port", "_owner",
        "_subscriptions",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: ApiOwner,
        around: Surroundings,
        address: str,
        own_port: int,
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._around = around
        self._address = address
        self._own_port = own_port
        self._may_deliver = may_deliver
        self._subscriptions: dict[str, Subscription] = {}
        self._early: list[tuple[str, int, str, Any]] | None = []
        self._early_bytes = 0
        self._kind: bool | None = None  # True: the Logs API is in use; False: the Telemetry API

    def begin(self) -> None:
        self.close()
        self._early = []
        self._early_bytes = 0
        self._kind = None

    def close(self) -> None:
        """Nothing is delivered any more."""
        for subscription in self._subscriptions.values():
            subscription.close()
        self._subscriptions = {}
        self._early = None

    def subscription_closed(self) -> None:
        """Nobody can subscribe any more."""
        self._early = None

    @property
    def wants_records(self) -> bool:
        return self._early is not None or bool(self._subscriptions)

    def forget(self, name: str) -> None:
        subscription = self._subscriptions.pop(name, None)
        if subscription is not None:
            subscription.close()

    def flush(self) -> None:
        for subscription in self._subscriptions.values():
            subscription.flush()

    def publish(self, source: str, time_ms: int, kind: str, record: Any) -> None:
        for subscription in self._subscriptions.values():
            subscription.add(source, time_ms, kind, record)
        if self._early is not None:
            byte_count = _OVERHEAD_BYTES + (len(record) if isinstance(record, str) else 512)
            if len(self._early) < EARLY_MAX and self._early_bytes + byte_count <= EARLY_MAX_BYTES:
                self._early.append((source, time_ms, kind, record))
                self._early_bytes += byte_count

    def subscribe_telemetry(self, connection: Connection, request: Request) -> None:
        """PUT /2022-07-01/telemetry."""
        self._subscribe(connection, request, False)

    def subscribe_logs(self, connection: Connection, request: Request) -> None:
        """PUT /2020-08-15/logs."""
        self._subscribe(connection, request, True)

    def _subscribe(self, connection: Connection, request: Request, is_logs_api: bool) -> None:
        extension = self._around.identify(request)
        if isinstance(extension, bytes):
            connection.answer(request, extension)
            return
        api = "Logs" if is_logs_api else "Telemetry"
        if not self._around.is_subscription_open:
            refusal = error_answer(403, f"{api}.SubscriptionClosed", f"{api} API subscription is closed already")
            connection.answer(request, refusal)
            return
        try:
            if self._kind is not None and self._kind is not is_logs_api:
                raise SubscriptionError("the Logs API and the Telemetry API can not be used together")
            wanted = read(request.body, is_logs_api, self._own_port)
        except SubscriptionError as error:
            connection.answer(request, error_answer(400, "ValidationError", str(error)[:500]))
            return
        self._kind = is_logs_api
        self.forget(extension.name)  # a second subscription takes the place of the first
        subscription = Subscription(self._loop, wanted, self._address, self._around.is_idle, self._may_deliver)
        self._subscriptions[extension.name] = subscription
        for early in self._early or ():
            subscription.add(*early)
        connection.answer(request, answer(200, b'"OK"', content_type=b"text/plain; charset=utf-8"))
        self._owner.on_subscribed(extension.name, wanted.sources)

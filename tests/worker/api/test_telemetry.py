"""The Telemetry and Logs APIs: what is accepted, what is delivered, what is dropped and told."""

from __future__ import annotations

import http.server
import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.worker.api.rig import NEXT, PATIENCE_S, Answer, Rig, invocation, response_path, wire

from lambent.worker.api import delivery as delivery_module
from lambent.worker.api import telemetry as telemetry_module
from lambent.worker.api.subscription import SubscriptionError, read
from lambent.worker.api.telemetry import DROP_REASON, rfc3339

TELEMETRY = "/2022-07-01/telemetry"
LOGS = "/2020-08-15/logs"
#: 2022-10-12T00:00:15.064Z
TIME_MS = 1_665_532_815_064


class Subscriber:
    """An HTTP listener; `statuses` are answered in turn, then 200."""

    def __init__(self) -> None:
        self.batches: queue.Queue[tuple[str, str, dict[str, str], Any]] = queue.Queue()
        self.statuses: list[int] = []
        told = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = told.statuses.pop(0) if told.statuses else 200
                told.batches.put((self.command, self.path, dict(self.headers), json.loads(body)))
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_POST = do_PUT = _take

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def take(self) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = self.batches.get(timeout=PATIENCE_S)[3]
        return records

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def subscriber() -> Iterator[Subscriber]:
    made = Subscriber()
    yield made
    made.close()


def wanted(port: int, **more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": "2022-12-13",
        "destination": {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{port}"},
        "types": ["platform", "function"],
        "buffering": {"timeoutMs": 25},
        **more,
    }


def subscribe(rig: Rig, body: Any, path: str = TELEMETRY, name: str = "inner") -> Answer:
    client, identifier = rig.extension(name)
    return client.call("PUT", path, json.dumps(body).encode(), Lambda_Extension_Identifier=identifier)


def publish(rig: Rig, kind: str, record: Any, source: str = "") -> None:
    source = source or kind.partition(".")[0]
    rig.do(rig.api.publish, source, TIME_MS, kind, record)


# --- delivery -------------------------------------------------------------------------------------------


def test_records_over_http(either_rig: Rig, subscriber: Subscriber) -> None:
    rig = either_rig
    answer = subscribe(rig, wanted(subscriber.port))
    assert (answer.status, answer.body) == (200, b'"OK"')
    assert rig.owner.take() == ("subscribed", "inner", ("platform", "function"))
    publish(rig, "platform.start", {"requestId": "r", "version": "1"})
    publish(rig, "function", "hello ü\n")
    publish(rig, "extension", "not wanted")
    method, path, headers, records = subscriber.batches.get(timeout=PATIENCE_S)
    assert (method, path) == ("POST", "/")
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == f"sandbox.localdomain:{subscriber.port}"
    time = "2022-10-12T00:00:15.064Z"
    everything = list(records)
    while len(everything) < 2:
        everything += subscriber.take()
    assert everything == [
        {"time": time, "type": "platform.start", "record": {"requestId": "r", "version": "1"}},
        {"time": time, "type": "function", "record": "hello ü\n"},
    ]
    publish(rig, "function", "again")
    assert subscriber.take()[0]["record"] == "again"


def test_records_over_tcp(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        destination = {"protocol": "TCP", "port": server.getsockname()[1]}
        assert subscribe(rig, wanted(0, destination=destination)).status == 200
        publish(rig, "function", "line one\n")
        connection, _ = server.accept()
        with connection, connection.makefile() as lines:
            connection.settimeout(PATIENCE_S)
            assert json.loads(lines.readline())["record"] == "line one\n"
            for number in range(100):
                publish(rig, "function", number)
            assert [json.loads(lines.readline())["record"] for _ in range(100)] == list(range(100))


def test_what_was_before_the_subscription(rig: Rig, subscriber: Subscriber) -> None:
    publish(rig, "platform.initStart", {"phase": "init"})
    publish(rig, "extension", "not wanted")
    assert subscribe(rig, wanted(subscriber.port)).status == 200
    assert [record["type"] for record in subscriber.take()] == ["platform.initStart"]


def test_early_records_are_bounded_and_end_with_registration(rig: Rig) -> None:
    assert rig.do(lambda: rig.api.has_subscribers)
    for number in range(3_000):
        rig.do(rig.api.publish, "function", TIME_MS, "function", "x" * 1_000 + str(number))
    early = rig.do(lambda: rig.api._telemetry._early)
    assert sum(len(record[3]) for record in early) <= telemetry_module.EARLY_MAX_BYTES
    rig.runtime()
    assert not rig.do(lambda: rig.api.has_subscribers)
    assert rig.do(lambda: rig.api._telemetry._early) is None


def test_a_batch_is_full_by_items(rig: Rig, subscriber: Subscriber) -> None:
    buffering = {"maxItems": 1_000, "timeoutMs": 30_000}
    assert subscribe(rig, wanted(subscriber.port, buffering=buffering)).status == 200

    def many() -> None:
        for number in range(2_500):
            rig.api.publish("function", TIME_MS, "function", str(number))

    rig.do(many)
    assert [len(subscriber.take()) for _ in range(2)] == [1_000, 1_000]
    assert subscriber.batches.empty()
    rig.do(rig.api.shut_down, "spindown", 1)  # what is left is not kept back
    assert len(subscriber.take()) == 500


def test_a_batch_is_full_by_bytes(rig: Rig, subscriber: Subscriber) -> None:
    buffering = {"maxBytes": 262_144, "timeoutMs": 30_000}
    assert subscribe(rig, wanted(subscriber.port, buffering=buffering)).status == 200

    def many() -> None:
        for _ in range(3):
            rig.api.publish("function", TIME_MS, "function", "x" * 120_000)

    rig.do(many)
    assert len(subscriber.take()) == 2


def test_an_error_is_tried_again(rig: Rig, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "RETRY_PAUSE_S", 0.001)
    subscriber.statuses = [500, 503]
    assert subscribe(rig, wanted(subscriber.port)).status == 200
    publish(rig, "function", "a")
    assert [subscriber.take()[0]["record"] for _ in range(3)] == ["a", "a", "a"]


def test_what_was_given_up_is_told(rig: Rig, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "RETRY_PAUSE_S", 0.001)
    subscriber.statuses = [500] * delivery_module.TRIES
    assert subscribe(rig, wanted(subscriber.port)).status == 200
    publish(rig, "function", "lost")
    for _ in range(delivery_module.TRIES):
        assert subscriber.take()[0]["record"] == "lost"
    publish(rig, "function", "arrives")
    assert subscriber.take()[0]["record"] == "arrives"
    (told,) = subscriber.take()
    assert told["type"] == "platform.logsDropped"
    assert told["record"]["droppedRecords"] == 1
    assert told["record"]["droppedBytes"] > 0
    assert told["record"]["reason"] == DROP_REASON


def test_a_subscriber_that_is_gone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "RETRY_PAUSE_S", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert subscribe(rig, wanted(port)).status == 200
    publish(rig, "function", "nobody there")
    while not rig.do(lambda: rig.api._telemetry._subscriptions["inner"]._dropped_records):
        pass


def test_a_subscriber_that_never_answers_costs_bounded_memory(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert subscribe(rig, wanted(server.getsockname()[1])).status == 200

        def many() -> None:
            for _ in range(200):
                rig.api.publish("function", TIME_MS, "function", "x" * 100_000)

        rig.do(many)
        subscription = rig.do(lambda: rig.api._telemetry._subscriptions["inner"])
        assert subscription._unsent_bytes <= telemetry_module.UNSENT_MAX_BYTES
        assert subscription._dropped_records > 100


def test_a_frozen_subscriber_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the environment is idle nothing times out: its processes may be frozen."""
    monkeypatch.setattr(delivery_module, "ANSWER_TIMEOUT_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        client, identifier = rig.extension("inner")
        body = json.dumps(wanted(server.getsockname()[1])).encode()
        assert client.call("PUT", TELEMETRY, body, Lambda_Extension_Identifier=identifier).status == 200
        client.ask("GET", "/2020-01-01/extension/event/next", Lambda_Extension_Identifier=identifier)
        rig.owner.wait_for("extension_ready")
        rig.runtime()
        publish(rig, "function", "kept")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(0.3)  # of many times the limit, nothing but the one request comes
            received = b""
            try:
                while True:
                    data = connection.recv(65_536)
                    assert data, "the connection was given up"
                    received += data
            except TimeoutError:
                pass
            assert received.count(b"POST /") == 1


def test_nobody_else_is_sent_to() -> None:
    rig = Rig(may_deliver=lambda _address: False)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.2)
            assert subscribe(rig, wanted(server.getsockname()[1])).status == 200
            publish(rig, "function", "secret")
            with pytest.raises(TimeoutError):
                server.accept()
    finally:
        rig.close()


def test_nothing_is_left_behind(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        assert subscribe(rig, wanted(server.getsockname()[1])).status == 200
        publish(rig, "function", "a")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            assert connection.recv(65_536)
            rig.do(rig.api.begin, True)
            assert connection.recv(65_536) == b""
    assert rig.do(lambda: rig.api._telemetry._subscriptions) == {}


# --- subscriptions --------------------------------------------------------------------------------------


def test_a_second_subscription_takes_the_place_of_the_first(rig: Rig, subscriber: Subscriber) -> None:
    client, identifier = rig.extension("inner")
    for types in (["platform"], ["extension"]):
        body = json.dumps(wanted(subscriber.port, types=types)).encode()
        assert client.call("PUT", TELEMETRY, body, Lambda_Extension_Identifier=identifier).status == 200
    publish(rig, "platform.start", {})
    publish(rig, "extension", "mine")
    assert [record["type"] for record in subscriber.take()] == ["extension"]


@pytest.mark.parametrize(("path", "api"), [(TELEMETRY, "Telemetry"), (LOGS, "Logs")])
def test_subscriptions_close_with_init(rig: Rig, path: str, api: str) -> None:
    client, identifier = rig.extension("inner")
    client.ask("GET", "/2020-01-01/extension/event/next", Lambda_Extension_Identifier=identifier)
    rig.owner.wait_for("extension_ready")
    rig.runtime()
    answer = rig.client().call("PUT", path, b"{}", Lambda_Extension_Identifier=identifier)
    assert answer.status == 403
    assert answer.json["errorType"] == f"{api}.SubscriptionClosed"


def test_an_extension_slower_than_the_runtime_may_subscribe(rig: Rig, subscriber: Subscriber) -> None:
    client, identifier = rig.extension("inner")
    publish(rig, "platform.initStart", {})
    rig.client().ask("GET", NEXT)
    while rig.do(lambda: rig.api.is_registration_open):
        pass
    body = json.dumps(wanted(subscriber.port)).encode()
    assert client.call("PUT", TELEMETRY, body, Lambda_Extension_Identifier=identifier).status == 200
    assert subscriber.take()[0]["type"] == "platform.initStart"


def test_one_of_the_two_apis(rig: Rig, subscriber: Subscriber) -> None:
    assert subscribe(rig, wanted(subscriber.port)).status == 200
    body = wanted(subscriber.port, schemaVersion="2020-08-15")
    answer = subscribe(rig, body, LOGS, "other")
    assert (answer.status, answer.json["errorType"]) == (400, "ValidationError")


def test_the_logs_api_has_its_own_words(rig: Rig, subscriber: Subscriber) -> None:
    destination = {"protocol": "HTTP", "URI": f"http://sandbox:{subscriber.port}/logs", "method": "PUT"}
    body = wanted(0, schemaVersion="2021-03-18", destination=destination)
    assert subscribe(rig, body, LOGS).status == 200

    def events() -> None:
        for kind in ("initStart", "start", "telemetrySubscription", "runtimeDone", "report"):
            record = {"requestId": "r", "status": "success", "metrics": {"durationMs": 1}, "spans": []}
            rig.api.publish("platform", TIME_MS, f"platform.{kind}", record)
        rig.api.publish("function", TIME_MS, "function", {"level": "INFO"})

    rig.do(events)
    method, path, _, records = subscriber.batches.get(timeout=PATIENCE_S)
    assert (method, path) == ("PUT", "/logs")
    assert [record["type"] for record in records] == [
        "platform.start",
        "platform.logsSubscription",
        "platform.runtimeDone",
        "platform.end",
        "platform.report",
        "function",
    ]
    assert records[2]["record"] == {"requestId": "r", "status": "success"}
    assert records[-1]["record"] == '{"level":"INFO"}'


@pytest.mark.parametrize(("schema", "shown"), [("2022-07-01", '{"a":1}'), ("2022-12-13", {"a": 1})])
def test_structured_logs_by_schema(rig: Rig, subscriber: Subscriber, schema: str, shown: Any) -> None:
    assert subscribe(rig, wanted(subscriber.port, schemaVersion=schema)).status == 200
    publish(rig, "function", {"a": 1})
    assert subscriber.take()[0]["record"] == shown


def http_to(uri: str, **more: Any) -> dict[str, Any]:
    return {"destination": {"protocol": "HTTP", "URI": uri, **more}}


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": "2020-08-15"},
        {"schemaVersion": 7},
        {"schemaVersion": []},
        {"types": []},
        {"types": ["other"]},
        {"types": [["platform"]]},
        {"types": "platform"},
        {"buffering": []},
        {"buffering": {"maxItems": 999}},
        {"buffering": {"maxItems": 10_001}},
        {"buffering": {"maxBytes": 262_143}},
        {"buffering": {"maxBytes": 1_048_577}},
        {"buffering": {"timeoutMs": 24}},
        {"buffering": {"timeoutMs": 30_001}},
        {"buffering": {"timeoutMs": True}},
        {"buffering": {"timeoutMs": 100.5}},
        {"destination": None},
        {"destination": {"protocol": "UDP", "port": 1}},
        {"destination": {"protocol": "TCP"}},
        {"destination": {"protocol": "TCP", "port": 0}},
        {"destination": {"protocol": "TCP", "port": 65_536}},
        {"destination": {"protocol": "TCP", "port": 9_001}},
        http_to("http://127.0.0.1:8080"),
        http_to("http://sandbox.localdomain.evil:8080"),
        http_to("http://user@sandbox:8080"),
        http_to("https://sandbox:8080"),
        http_to("http://sandbox:99999"),
        http_to("http://sandbox:x"),
        http_to("http://sandbox:9001"),
        http_to("http://[sandbox:8080"),
        http_to("http://sandbox:8080/a b"),
        http_to("http://sandbox:8080/\r\nX: y"),
        http_to("http://sandbox:8080", method="GET"),
        http_to("http://sandbox:8080", encoding="XML"),
        http_to(""),
    ],
)
def test_bodies_that_are_not_valid(change: dict[str, Any]) -> None:
    read(json.dumps(wanted(8_080)).encode(), False, 9_001)
    with pytest.raises(SubscriptionError):
        read(json.dumps(wanted(8_080, **change)).encode(), False, 9_001)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_body_is_read_or_refused(body: bytes | str) -> None:
    with pytest.raises(SubscriptionError):
        read(body.encode() if isinstance(body, str) else body, False, 9_001)


def test_defaults() -> None:
    body = {"types": ["platform"], "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain"}}
    found = read(json.dumps(body).encode(), False, 9_001)
    assert (found.items_max, found.bytes_max, found.timeout_ms) == (10_000, 262_144, 1_000)
    assert (found.port, found.path, found.method) == (80, "/", "POST")


def test_an_invalid_body_over_the_wire(rig: Rig) -> None:
    answer = subscribe(rig, {"types": []})
    assert (answer.status, answer.json["errorType"]) == (400, "ValidationError")


def test_times() -> None:
    assert rfc3339(TIME_MS) == "2022-10-12T00:00:15.064Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"


def test_publishing_within_an_invocation(rig: Rig, subscriber: Subscriber) -> None:
    """As the environment does it: records published in the owner's callbacks."""
    client, identifier = rig.extension("inner", [])
    body = json.dumps(wanted(subscriber.port)).encode()
    assert client.call("PUT", TELEMETRY, body, Lambda_Extension_Identifier=identifier).status == 200
    client.ask("GET", "/2020-01-01/extension/event/next", Lambda_Extension_Identifier=identifier)
    rig.owner.wait_for("extension_ready")
    rig.owner.react["response"] = lambda *_told: rig.api.publish(
        "platform", TIME_MS, "platform.runtimeDone", {"requestId": "r", "status": "success"}
    )
    runtime = rig.running()
    runtime.send(wire("POST", response_path(), b"1") + wire("GET", NEXT))
    assert rig.owner.wait_for("settled")
    assert subscriber.take()[0]["type"] == "platform.runtimeDone"
    rig.do(rig.api.invoke, invocation(), 1)

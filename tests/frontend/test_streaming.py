"""InvokeWithResponseStream over a real socket, with boto3 and with bare bytes; the test plays the runtime."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from frontend.harness import PATIENCE_S, Call, Frontend, Producer
from lambent.model.errors import ServiceUnavailable, TooManyRequests
from lambent.model.limits import SYNC_PAYLOAD_MAX_BYTES

PATH = "/2021-11-15/functions/f/response-streaming-invocations"
MIB = 1_048_576


def begin(frontend: Frontend, **arguments: Any) -> tuple[Future[Any], Call]:
    """A streaming invoke by boto3, and the call that reached the worker's side."""
    pool = ThreadPoolExecutor(1)
    client = frontend.client()
    answer = pool.submit(client.invoke_with_response_stream, **{"FunctionName": "f", **arguments})
    pool.shutdown(wait=False)
    return answer, frontend.next_call()


def chunks(events: list[dict[str, Any]]) -> bytes:
    return b"".join(event["PayloadChunk"]["Payload"] for event in events if "PayloadChunk" in event)


def test_each_chunk_is_seen_before_the_next_is_sent(frontend: Frontend) -> None:
    pending, call = begin(frontend, Payload=b'{"a":1}')
    assert call.invocation.payload == b'{"a":1}'
    call.start("text/plain")
    answer = pending.result(PATIENCE_S)
    assert answer["StatusCode"] == 200
    assert answer["ExecutedVersion"] == "$LATEST"
    assert answer["ResponseStreamContentType"] == "application/vnd.amazon.eventstream"
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["transfer-encoding"] == "chunked"
    assert headers["x-amzn-requestid"] == call.invocation.request_id
    events = iter(answer["EventStream"])
    for piece in (b"one", b"two", bytes(range(256))):
        call.chunk(piece)
        assert next(events) == {"PayloadChunk": {"Payload": piece}}
    call.end_stream()
    assert list(events) == [{"InvokeComplete": {}}]


def test_a_runtime_that_answers_in_one_piece(frontend: Frontend) -> None:
    payload = b'"' + b"x" * (3 * MIB) + b'"'
    pending, call = begin(frontend, LogType="Tail")
    assert call.invocation.wants_tail
    assert call.invocation.payload == b"{}"
    call.end(payload, log_tail=b"START\n")
    *pieces, last = list(pending.result(PATIENCE_S)["EventStream"])
    assert chunks(pieces) == payload
    assert len(pieces) > 1
    assert last == {"InvokeComplete": {"LogResult": base64.b64encode(b"START\n").decode()}}


def test_function_errors_come_at_the_end(frontend: Frontend) -> None:
    details = b'{"errorType":"E","errorMessage":"m"}'
    pending, call = begin(frontend)
    call.end(details, is_function_error=True)
    complete = {"InvokeComplete": {"ErrorCode": "Unhandled", "ErrorDetails": details.decode()}}
    assert list(pending.result(PATIENCE_S)["EventStream"]) == [complete]

    pending, call = begin(frontend)
    call.start()
    call.chunk(b"half")
    call.end(details, is_function_error=True, streamed=True)
    assert list(pending.result(PATIENCE_S)["EventStream"]) == [{"PayloadChunk": {"Payload": b"half"}}, complete]

    pending, call = begin(frontend)
    call.start()
    call.refuse(ServiceUnavailable("lost"))
    (event,) = list(pending.result(PATIENCE_S)["EventStream"])
    assert event["InvokeComplete"] == {"ErrorCode": "ServiceUnavailableException", "ErrorDetails": "lost"}


def test_refusals_before_the_function_runs(frontend: Frontend) -> None:
    pending, call = begin(frontend)
    call.refuse(TooManyRequests("Rate Exceeded.", Reason="ConcurrentInvocationLimitExceeded"))
    with pytest.raises(ClientError, match="TooManyRequestsException"):
        pending.result(PATIENCE_S)
    client = frontend.client()
    for arguments, code in (
        ({"FunctionName": "g"}, "ResourceNotFoundException"),
        ({"FunctionName": "f", "Payload": b"{"}, "InvalidRequestContentException"),
        ({"FunctionName": "f", "InvocationType": "Event"}, "ValidationException"),
        ({"FunctionName": "f", "Payload": b'"' + bytes(SYNC_PAYLOAD_MAX_BYTES)}, "RequestEntityTooLargeException"),
    ):
        with pytest.raises(ClientError) as caught:
            client.invoke_with_response_stream(**arguments)
        assert caught.value.response["Error"]["Code"] == code
    assert client.invoke_with_response_stream(FunctionName="f", InvocationType="DryRun")["StatusCode"] == 204
    assert frontend.calls.empty()


def test_the_connection_is_used_again(frontend: Frontend) -> None:
    connection = frontend.connection()
    for index in range(3):
        connection.request("POST", PATH, b"{}")
        call = frontend.next_call()
        call.start()
        call.chunk(b"x" * index)
        call.end_stream()
        answer = connection.getresponse()
        assert answer.getheader("Connection") == "keep-alive"
        assert answer.read()
    connection.close()


def test_requests_behind_a_stream_wait_for_its_end(frontend: Frontend) -> None:
    with socket.create_connection(("127.0.0.1", frontend.port), PATIENCE_S) as sock:
        request = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        sock.sendall(request * 2)
        first = frontend.next_call()
        first.start()
        assert frontend.calls.empty()
        first.end_stream()
        frontend.next_call().end(b"1")
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while received.count(b"InvokeComplete") < 2 or not received.endswith(b"0\r\n\r\n"):
            piece = sock.recv(65_536)
            assert piece, received
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 2


def test_http_1_0_gets_no_chunks(frontend: Frontend) -> None:
    with socket.create_connection(("127.0.0.1", frontend.port), PATIENCE_S) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        call = frontend.next_call()
        call.start()
        call.chunk(b"abc")
        call.end_stream()
        received = b"".join(iter(lambda: sock.recv(65_536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert body[:4] == len(body[: body.index(b"abc") + 7]).to_bytes(4, "big"), "events follow the head directly"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


def test_200_mb_pass_without_being_held(frontend: Frontend) -> None:
    pending, call = begin(frontend)
    producer = Producer(frontend, call, 200 * MIB)
    producer.run()
    before = peak = _resident_bytes()
    received = 0
    for event in pending.result(PATIENCE_S)["EventStream"]:
        if "PayloadChunk" in event:
            received += len(event["PayloadChunk"]["Payload"])
            if received % (4 * MIB) == 0:
                peak = max(peak, _resident_bytes())
    assert received == 200 * MIB
    assert producer.pauses > 0
    assert peak - before < 32 * MIB


def test_a_slow_reader_pauses_the_source(frontend: Frontend) -> None:
    connection = frontend.connection()
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.request("POST", PATH, b"{}")
    call = frontend.next_call()
    producer = Producer(frontend, call, 64 * MIB)
    producer.run()
    assert producer.paused.wait(PATIENCE_S)
    held = frontend.on_loop(lambda: producer.sent_bytes)
    assert held < 16 * MIB, "what fits in the sockets' buffers, and little more"
    answer = connection.getresponse()
    assert len(answer.read()) > 64 * MIB
    assert producer.ended.wait(PATIENCE_S)
    connection.close()


@pytest.mark.parametrize("paused_first", [True, False])
def test_a_client_that_leaves_does_not_stop_the_function(frontend: Frontend, paused_first: bool) -> None:
    connection = frontend.connection()
    connection.request("POST", PATH, b"{}")
    call = frontend.next_call()
    producer = Producer(frontend, call, 32 * MIB)
    if paused_first:
        producer.run()
        assert producer.paused.wait(PATIENCE_S)
        connection.close()
    else:
        connection.close()
        while frontend.on_loop(lambda: frontend.listener.connection_count):
            pass
        producer.run()
    assert producer.ended.wait(PATIENCE_S), "all of it was taken and dropped"
    # and the server is well
    pending, call = begin(frontend)
    call.end(b"1")
    assert chunks(list(pending.result(PATIENCE_S)["EventStream"])) == b"1"


def test_plain_invoke_is_as_it_was(frontend: Frontend) -> None:
    connection = frontend.connection()
    connection.request("POST", "/2015-03-31/functions/f/invocations", b'{"a":1}')
    call = frontend.next_call()
    assert call.invocation.sink is None
    call.end(b'"r"')
    answer: http.client.HTTPResponse = connection.getresponse()
    assert (answer.status, json.loads(answer.read())) == (200, "r")
    connection.close()

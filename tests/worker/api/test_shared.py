"""The APIs of an environment with several requests at once: who gets which invocation, and what becomes of answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.worker.api.rig import (
    FACTS,
    NEXT,
    REGISTER,
    Client,
    Recorder,
    Rig,
    error_path,
    invocation,
    response_path,
)

from lambent.worker.api.interface import Admits
from lambent.worker.api.shared import Call, SharedApi

INIT_ERROR = "/2018-06-01/runtime/init/error"
DEADLINE_MS = 1_700_000_000_000


class SharedRig(Rig):
    api: SharedApi

    def make_api(
        self,
        listener: socket.socket,
        admits: Admits | None,
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> SharedApi:
        return SharedApi(self.loop, listener, self.owner, FACTS, admits, "127.0.0.1", may_deliver, 8)

    def begin(self, request_id: str, payload: bytes = b"{}") -> Running:
        owner = Recorder()
        over: list[str] = []
        call = self.do(
            self.api.begin_call,
            owner,
            invocation(payload, request_id),
            DEADLINE_MS,
            lambda: over.append(request_id),
        )
        return Running(owner, call, over)

    def worker(self) -> Client:
        client = self.client()
        client.ask("GET", NEXT)
        return client


class Running:
    def __init__(self, owner: Recorder, call: Call, over: list[str]) -> None:
        self.owner, self.call, self.over = owner, call, over


@pytest.fixture
def rig() -> Iterator[SharedRig]:
    made = SharedRig()
    yield made
    made.close()


def test_many_wait_and_each_gets_one(rig: SharedRig) -> None:
    workers = [rig.worker()]
    assert rig.owner.take() == ("settled",)
    workers += [rig.worker() for _ in range(3)]
    running = [rig.begin(f"r{number}", b"%d" % number) for number in range(4)]
    given = {}
    for worker in workers:
        answer = worker.answer()
        given[answer.headers["lambda-runtime-aws-request-id"]] = worker, answer
    assert sorted(given) == ["r0", "r1", "r2", "r3"]
    for number in (2, 0, 3, 1):
        worker, answer = given[f"r{number}"]
        assert answer.body == b"%d" % number
        nonce = answer.headers["lambda-runtime-invocation-id"]
        accepted = worker.call("POST", response_path(f"r{number}"), b"a%d" % number, Lambda_Runtime_Invocation_Id=nonce)
        assert accepted.status == 202
        assert running[number].owner.take() == ("response", b"a%d" % number, "application/json")
        worker.ask("GET", NEXT)
    assert rig.owner.silent


def test_an_invocation_waits_for_a_worker(rig: SharedRig) -> None:
    first = rig.worker()
    assert rig.owner.take() == ("settled",)
    one, two = rig.begin("one"), rig.begin("two")
    assert first.answer().headers["lambda-runtime-aws-request-id"] == "one"
    second = rig.worker()
    assert second.answer().headers["lambda-runtime-aws-request-id"] == "two"
    assert second.call("POST", error_path("two"), b'{"errorType":"E"}').status == 202
    assert two.owner.take()[0] == "error"
    assert first.call("POST", response_path("one"), b"1").status == 202
    assert one.owner.take()[0] == "response"


def test_an_answer_without_nonce_may_come_over_another_connection(rig: SharedRig) -> None:
    rig.worker()
    running = rig.begin("r")
    assert rig.client().call("POST", response_path("r"), b"1").status == 202
    assert running.owner.take() == ("response", b"1", "application/json")


def test_after_the_timeout_the_answer_is_refused_and_frees_the_place(rig: SharedRig) -> None:
    worker, other = rig.worker(), rig.worker()
    late, good = rig.begin("late"), rig.begin("good")
    clients = {each.answer().headers["lambda-runtime-aws-request-id"]: each for each in (worker, other)}
    assert rig.do(rig.api.expire, late.call) is False
    refused = clients["late"].call("POST", response_path("late"), b"1")
    assert (refused.status, refused.json) == (410, {"errorMessage": "Invoke timeout", "errorType": "InvokeTimeout"})
    assert late.over == ["late"]
    assert late.owner.silent
    assert clients["late"].call("POST", response_path("late"), b"1").status == 400
    assert clients["good"].call("POST", response_path("good"), b"1").status == 202
    assert good.owner.take()[0] == "response"


def test_a_retry_has_the_same_id_and_its_own_answer(rig: SharedRig) -> None:
    workers = [rig.worker(), rig.worker()]
    first = rig.begin("same", b"1")
    rig.do(rig.api.expire, first.call)
    second = rig.begin("same", b"2")
    by_payload = {}
    for worker in workers:
        answer = worker.answer()
        by_payload[answer.body] = worker, answer.headers["lambda-runtime-invocation-id"]
    worker, nonce = by_payload[b"2"]
    assert worker.call("POST", response_path("same"), b"b", Lambda_Runtime_Invocation_Id=nonce).status == 202
    assert second.owner.take() == ("response", b"b", "application/json")
    worker, nonce = by_payload[b"1"]
    assert worker.call("POST", response_path("same"), b"a", Lambda_Runtime_Invocation_Id=nonce).status == 410
    assert first.over == ["same"]
    assert first.owner.silent


def test_one_that_no_worker_has_had_is_over_with_its_timeout(rig: SharedRig) -> None:
    running = rig.begin("r")
    assert rig.do(rig.api.expire, running.call) is True
    worker = rig.worker()
    following = rig.begin("following")
    assert worker.answer().headers["lambda-runtime-aws-request-id"] == "following"
    assert rig.do(rig.api.expire, following.call) is False


def test_a_worker_that_is_gone_gets_nothing(rig: SharedRig) -> None:
    gone, stays = rig.worker(), rig.worker()
    assert rig.owner.take() == ("settled",)
    rig.client().call("GET", "/2018-06-01/ping")  # both wait by now
    gone.close()
    while len(rig.do(lambda: rig.api._runtime._waiters)) > 1:
        pass
    rig.begin("r")
    assert stays.answer().headers["lambda-runtime-aws-request-id"] == "r"


def test_a_streamed_answer(rig: SharedRig) -> None:
    worker = rig.worker()
    running = rig.begin("r")
    worker.answer()
    head = f"POST {response_path('r')} HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n"
    worker.send(head.encode() + b"Lambda-Runtime-Function-Response-Mode: streaming\r\n\r\n2\r\nab\r\n0\r\n\r\n")
    assert worker.answer().status == 202
    calls: list[Any] = [running.owner.take() for _ in range(3)]
    assert calls == [("stream_start", "application/octet-stream"), ("chunk", b"ab"), ("stream_end", None, b"")]


def test_only_the_first_init_error_counts(rig: SharedRig) -> None:
    body = json.dumps({"errorType": "E", "errorMessage": "m"}).encode()
    assert rig.client().call("POST", INIT_ERROR, body).status == 202
    assert rig.owner.take()[0] == "init_error"
    refused = rig.client().call("POST", INIT_ERROR, body)
    assert (refused.status, refused.json["errorType"]) == (403, "InvalidStateTransition")
    assert rig.owner.silent


def test_extensions_can_not_subscribe_to_invocations(rig: SharedRig) -> None:
    refused = rig.client().call("POST", REGISTER, b'{"events":["INVOKE"]}', Lambda_Extension_Name="inner")
    assert (refused.status, refused.json["errorType"]) == (403, "Extension.InvalidEventType")
    rig.extension("inner", ())

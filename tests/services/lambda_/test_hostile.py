"""Whatever a client sends, the answer is AWS's or a refusal in words: never 500, and the state stays whole."""

from __future__ import annotations

import asyncio
import json
import tempfile
import urllib.parse
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.wire.http import Request, Response
from lambent.wire.service_model import Shape, load

from .harness import ACCOUNT, ARN, OTHER_ZIP, REGION, ROLE, ZIP, Harness, request

MODEL = load("lambda")

#: Values that lead somewhere, by member; what is not here is drawn from the model's types.
GOOD: dict[str, list[Any]] = {
    "FunctionName": ["f", "f", "f", "g", f"{ARN}:f", "f:1", "f:live", "function:f", f"{ACCOUNT}:function:g:$LATEST"],
    "Runtime": ["python3.12", "python3.9", "java8", "nodejs22.x"],
    "Role": [ROLE],
    "Handler": ["main.handler"],
    "ZipFile": [b64encode(ZIP).decode(), b64encode(OTHER_ZIP).decode(), b64encode(b"x").decode()],
    "Qualifier": ["$LATEST", "1", "2", "live", "9" * 128],
    "FunctionVersion": ["$LATEST", "1", "2", "99", "9" * 1000, "ALL"],
    "Name": ["live", "blue"],
    "Resource": [f"{ARN}:f", f"{ARN}:f:1", f"{ARN}:g"],
    "AdditionalVersionWeights": [{"1": 0.5}, {"2": 1}, {"1": 0.1, "2": 0.2}, {"9" * 1000: 0.5}, {}],
    "Variables": [{}, {"KEY": "value"}, {"AWS_REGION": "x"}, {"KEY": "x" * 5000}, {"KEY": "\0"}],
    "ReservedConcurrentExecutions": [0, 1, 900, 2**31, 2**70],
    "Tags": [{}, {"a": "b"}, {str(n): "" for n in range(60)}],
    "Marker": ["", "kqFmAA==", "x", "kqFhz___________", "k6Fh"],
    "PackageType": ["Zip"],
}
CODE = {"ZipFile": b64encode(ZIP).decode()}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def value_of(name: str, shape: Shape, depth: int = 0) -> st.SearchStrategy[Any]:
    """Mostly something sensible, sometimes anything."""
    junk = st.one_of(TEXT, st.integers(), st.none(), st.just([]), st.just({}), st.just([{}]), st.just({"a": 1}))
    if name in GOOD:
        likely: st.SearchStrategy[Any] = st.sampled_from(GOOD[name])
    elif shape.kind == "structure":
        likely = structure(shape, depth + 1)
    elif shape.enum:
        likely = st.sampled_from(shape.enum)
    elif shape.kind == "boolean":
        likely = st.booleans()
    elif shape.kind in ("integer", "long", "double"):
        likely = st.integers(int(shape.min or 0) - 1, int(shape.max or 10**6) + 1)
    elif shape.kind == "list":
        likely = st.lists(value_of("", shape.element.shape, depth + 1), max_size=2)
    elif shape.kind == "map":
        likely = st.dictionaries(TEXT, TEXT, max_size=2)
    else:
        likely = TEXT
    return st.sampled_from(range(25)).flatmap(lambda number: junk if number == 24 else likely)


def structure(shape: Shape, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    if depth > 4:
        return st.just({})
    members = {name: value_of(name, member.shape, depth) for name, member in shape.members.items()}
    required = {name: members[name] for name in shape.required}
    always = required | {name: members[name] for name in ("Runtime", "Handler", "ZipFile") if name in members}
    rare = {name: each for name, each in members.items() if name not in always}
    some = st.lists(st.sampled_from(sorted(rare)), max_size=3, unique=True) if rare else st.just([])
    chosen = st.booleans().flatmap(lambda plain: st.just([]) if plain else some)
    return chosen.flatmap(lambda names: st.fixed_dictionaries(always | {name: rare[name] for name in names}))


@st.composite
def requests(draw: st.DrawFn, operation: str) -> Request:
    described = MODEL.operation(operation)
    params = draw(structure(described.input)) if described.input is not None else {}
    path, query, body = described.uri, [], {}
    members = described.input.members if described.input is not None else {}
    for name, value in params.items():
        member = members[name]
        if member.location == "uri":
            path = path.replace("{" + member.wire_name + "}", _quoted(value))
        elif member.location == "querystring":
            query.append(f"{member.wire_name}={_quoted(value)}")
        else:
            body[member.wire_name] = value
    data = json.dumps(body).encode() if body else b""
    ids = (ACCOUNT, REGION, "lambda", str(uuid.uuid4()))
    return Request(described.method, path, "&".join(query), {"host": "x"}, data, *ids)


def _quoted(value: Any) -> str:
    return urllib.parse.quote(str(value), safe="")


@pytest.fixture(scope="module")
def server() -> Iterator[Harness]:
    with tempfile.TemporaryDirectory() as data:
        harness = Harness(Path(data)).start()
        yield harness
        harness.stop()


#: Called more often than the rest: without functions the others have nothing to bite on.
MAKERS = ["CreateFunction", "UpdateFunctionCode", "PublishVersion", "CreateAlias"]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_input_makes_a_500(server: Harness, data: st.DataObject) -> None:
    handlers = sorted(server.service.handlers)
    # Something to bite on; it may be there from the last time.
    server.run(
        server.answer("POST", "/2015-03-31/functions", {}, json.dumps(request(Publish=True, Code=CODE)).encode())
    )
    live = b'{"Name": "live", "FunctionVersion": "1"}'
    server.run(server.answer("POST", "/2015-03-31/functions/f/aliases", {}, live))
    operations = data.draw(st.lists(st.sampled_from([*handlers, *MAKERS * 4]), min_size=1, max_size=6))
    calls = [data.draw(requests(operation)) for operation in operations]

    async def send() -> list[Response]:
        return list(await asyncio.gather(*(server.service.handle(call) for call in calls)))

    for operation, call, response in zip(operations, calls, server.run(send()), strict=True):
        assert response.status < 500, (operation, call, response)
        if response.status >= 400:
            assert any(name.lower() == "x-amzn-errortype" for name, _ in response.headers)
    server.release()


def test_the_state_is_whole_afterwards(server: Harness) -> None:
    """Runs after the storm: everything that is left can be read, and survives a restart."""
    client = server.client()
    before = list(client.get_paginator("list_functions").paginate(FunctionVersion="ALL").search("Functions[]"))
    server.restart()
    client = server.client()
    after = list(client.get_paginator("list_functions").paginate(FunctionVersion="ALL").search("Functions[]"))
    assert before == after
    for each in after:
        client.get_function(FunctionName=each["FunctionArn"])

"""The frame around handlers: every outcome is a Response of the service's protocol."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.services.base import CallContext, ModelService
from lambent.wire.http import Request, Response
from lambent.wire.rest_json import RestJsonCodec
from lambent.wire.service_model import load


async def get_alias(context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
    if params["Name"] == "gone":
        raise ResourceNotFound("Alias not found")
    if params["Name"] == "bug":
        raise KeyError("x")
    if params["Name"] == "typo":
        return {"Nmae": "x"}
    return {"Name": params["Name"], "Description": None, "AliasArn": f"{context.account}:{context.region}"}


SERVICE = ModelService(RestJsonCodec(load("lambda")), {"GetAlias": get_alias}, invalid=InvalidParameterValue)


def get(path: str) -> Response:
    request = Request("GET", "/2015-03-31" + path, "", {}, b"", "123456789012", "eu-west-1", "lambda", "id-1")
    return asyncio.run(SERVICE.handle(request))


def test_a_handler_answers() -> None:
    response = get("/functions/f/aliases/live")
    assert response.status == 200
    assert json.loads(response.body) == {"Name": "live", "AliasArn": "123456789012:eu-west-1"}


def test_an_api_error_is_the_protocol_s_error() -> None:
    response = get("/functions/f/aliases/gone")
    assert response.status == 404
    assert ("x-amzn-ErrorType", "ResourceNotFoundException") in response.headers


def test_broken_constraints_use_the_service_s_own_error() -> None:
    response = get("/functions/f/aliases/a%20b")
    assert ("x-amzn-ErrorType", "InvalidParameterValueException") in response.headers
    assert b"at 'name' failed to satisfy constraint" in response.body


def test_what_has_no_handler_is_named() -> None:
    response = get("/functions/f")
    assert response.status == 501
    assert b"GetFunction" in response.body


def test_no_route() -> None:
    assert get("/nothing").status == 404


@pytest.mark.parametrize("name", ["bug", "typo"])
def test_a_bug_of_ours_is_logged_and_answered_with_500(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = get(f"/functions/f/aliases/{name}")
    assert response.status == 500
    assert json.loads(response.body)["Type"] == "Server"
    assert caplog.records[0].exc_info is not None


def test_a_handler_for_no_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="GetAllias"):
        ModelService(RestJsonCodec(load("lambda")), {"GetAllias": get_alias})

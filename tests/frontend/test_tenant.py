"""X-Amz-Tenant-Id: read by hand for speed, so held to what the service model says of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st

from frontend.harness import Frontend
from lambent.frontend.connection import RawRequest
from lambent.frontend.invoke_request import tenant
from lambent.model.errors import ValidationError
from lambent.wire.service_model import load
from lambent.wire.validation import validate

_CHARS = st.sampled_from("aZ09._:/=+-@ ,#\x7f\\é")


_INVOKE = load("lambda").operation("Invoke").input


@given(
    st.text(_CHARS, max_size=6)
    | st.text(st.characters(max_codepoint=255), max_size=6)
    | st.builds(str.__mul__, _CHARS, st.sampled_from([255, 256, 257, 1023, 1025]))
)
@example("")
@example("blue\n")
def test_as_the_model_says(value: str) -> None:
    assert _INVOKE is not None
    raw = RawRequest()
    raw.headers[b"x-amz-tenant-id"] = value.encode("latin-1")
    assert _outcome(lambda: tenant(raw)) == _outcome(
        lambda: validate({"FunctionName": "f", "TenantId": value}, _INVOKE) or value
    )


def _outcome(call: Callable[[], str]) -> tuple[str, bool]:
    try:
        return call(), True
    except ValidationError as error:
        return error.message, False


def test_none_at_all() -> None:
    assert tenant(RawRequest()) == ""


@pytest.mark.parametrize("operation", ["invoke", "invoke_with_response_stream"])
def test_what_is_none_goes_no_further(frontend: Frontend, operation: str) -> None:
    call = getattr(frontend.client(), operation)
    with pytest.raises(ClientError, match="at 'tenantId'"):
        call(FunctionName="f", TenantId="blue;green")
    assert frontend.calls.empty()


def test_function_urls_take_no_tenant_from_their_callers(frontend: Frontend) -> None:
    frontend.set_url()
    connection = frontend.send("POST", "/", b"{}", {"X-Amz-Tenant-Id": "blue"})
    reached = frontend.next_call()
    assert reached.invocation.tenant_id == ""
    assert reached.event["headers"]["x-amz-tenant-id"] == "blue"
    reached.end(b"{}")
    assert connection.getresponse().status == 200
    connection.close()

"""Any request makes an event that is JSON, and its body comes back as it was."""

from __future__ import annotations

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from lambent.frontend.connection import RawRequest
from lambent.frontend.function_urls.event import Client, make_event
from lambent.model.function_url import UrlAuthType, UrlSpec
from lambent.model.names import FunctionKey

SPEC = UrlSpec(id="i" * 32, key=FunctionKey("000000000000", "us-east-1", "f"), auth_type=UrlAuthType.NONE)
_NAMES = st.sampled_from([b"content-type", b"cookie", b"x-forwarded-for", b"user-agent", b"x", b"content-encoding"])
_TYPES = st.sampled_from([b"text/plain", b"application/json; charset=utf-16", b"image/png", b";;", b""])


@given(st.binary(max_size=60), st.dictionaries(_NAMES, st.binary(max_size=20) | _TYPES), st.binary(max_size=60))
def test_any_request(target: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
    raw = RawRequest()
    raw.method, raw.target, raw.headers, raw.body = b"POST", b"/" + target, headers, body
    raw.request_id, raw.trace_id = "r", "0" * 32
    event = json.loads(make_event(raw, SPEC, "h", Client("127.0.0.1", 80, "HTTP/1.1"), None, 1_584_043_438_000_000_000))
    given_back = event.get("body", "")
    assert (base64.b64decode(given_back) if event["isBase64Encoded"] else given_back.encode()) == body
    assert event["requestContext"]["time"] == "12/Mar/2020:20:03:58 +0000"
    assert event["requestContext"]["timeEpoch"] == 1_584_043_438_000
    assert set(event["headers"]) >= {name.decode() for name in headers}


def test_as_many_parameters_as_a_request_line_holds() -> None:
    raw = RawRequest()
    raw.method, raw.target, raw.trace_id = b"GET", b"/?" + b"a&" * 32_000, "0" * 32
    event = json.loads(make_event(raw, SPEC, "h", Client("", 0, "HTTP/1.1"), None, 0))
    assert event["queryStringParameters"] == {"a": "," * 31_999}

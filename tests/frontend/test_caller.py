"""Who calls: account, region and service from the signature's scope; anything odd is the default caller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.frontend.caller import ANYONE, from_authorization, from_query


def header(scope: str) -> bytes:
    return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature=00".encode()


@pytest.mark.parametrize(
    ("scope", "account", "region", "service"),
    [
        ("123456789012/20261123/eu-west-1/lambda/aws4_request", "123456789012", "eu-west-1", "lambda"),
        ("AKIAIOSFODNN7EXAMPLE/20261123/us-east-1/logs/aws4_request", "000000000000", "us-east-1", "logs"),
        ("test/20261123/us-gov-west-1/lambda/aws4_request", "000000000000", "us-gov-west-1", "lambda"),
        ("1234567890123/20261123/us-east-2/s3/aws4_request", "000000000000", "us-east-2", "s3"),
        ("key/with/slashes/20261123/ap-southeast-2/lambda/aws4_request", "000000000000", "ap-southeast-2", "lambda"),
        ("k/20261123/not a region/lambda/aws4_request", "000000000000", "us-east-1", "lambda"),
    ],
)
def test_scopes(scope: str, account: str, region: str, service: str) -> None:
    assert from_authorization(header(scope)) == (account, region, service)
    assert from_query("a=1&X-Amz-Credential=" + scope.replace("/", "%2F") + "&b=2") == (account, region, service)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"Basic dXNlcjpwYXNz",
        b"AWS4-HMAC-SHA256",
        b"AWS4-HMAC-SHA256 Credential=",
        header("a/b/c"),
        b"\xff\x00",
    ],
)
def test_the_rest_is_anyone(value: bytes | None) -> None:
    assert from_authorization(value) == ANYONE == ("000000000000", "us-east-1", "")


def test_a_credential_at_the_end_of_the_header() -> None:
    value = b"AWS4-HMAC-SHA256 SignedHeaders=host, Credential=123456789012/20261123/eu-west-1/lambda/aws4_request"
    assert from_authorization(value) == ("123456789012", "eu-west-1", "lambda")


@pytest.mark.parametrize(
    "query", ["", "X-Amz-Credential=", "Y-X-Amz-Credential=a%2Fb%2Fc%2Fd%2Fe", "X-Amz-Credential=a"]
)
def test_queries_without_a_scope(query: str) -> None:
    assert from_query(query) == ANYONE


@given(st.binary(max_size=80))
def test_any_bytes_are_somebody(value: bytes) -> None:
    for text in (value, b"AWS4-HMAC-SHA256 Credential=" + value):
        who = from_authorization(text)
        assert who.account.isdigit()
        assert len(who.account) == 12
        assert who.region

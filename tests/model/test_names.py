"""Names of functions in all the forms in which clients write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.model.errors import ApiError, InvalidParameterValue, ResourceNotFound, ValidationError
from lambent.model.names import NAME_PATTERN, FunctionKey, parse_function_ref

HERE = ("123456789012", "eu-west-1")


def parse(text: str, qualifier: str | None = None) -> tuple[str, str, str, str | None]:
    ref = parse_function_ref(text, qualifier, *HERE)
    return (*ref.key, ref.qualifier)


@pytest.mark.parametrize(
    ("text", "account", "qualifier"),
    [
        ("my-func_1", "123456789012", None),
        ("my-func_1:live", "123456789012", "live"),
        ("my-func_1:42", "123456789012", "42"),
        ("my-func_1:$LATEST", "123456789012", "$LATEST"),
        ("function:my-func_1", "123456789012", None),
        ("function:my-func_1:live", "123456789012", "live"),
        ("210987654321:function:my-func_1", "210987654321", None),
        ("210987654321:function:my-func_1:7", "210987654321", "7"),
        ("210987654321:my-func_1", "210987654321", None),
        ("arn:aws:lambda:eu-west-1:210987654321:function:my-func_1", "210987654321", None),
        ("arn:aws:lambda:eu-west-1:210987654321:function:my-func_1:$LATEST", "210987654321", "$LATEST"),
        ("arn:aws-cn:lambda:eu-west-1:210987654321:function:my-func_1:live", "210987654321", "live"),
    ],
)
def test_forms(text: str, account: str, qualifier: str | None) -> None:
    assert parse(text) == (account, "eu-west-1", "my-func_1", qualifier)


def test_a_qualifier_beside_the_name() -> None:
    assert parse("f", "live") == ("123456789012", "eu-west-1", "f", "live")
    assert parse("f:live", "live") == ("123456789012", "eu-west-1", "f", "live")
    with pytest.raises(InvalidParameterValue) as caught:
        parse("f:live", "7")
    assert caught.value.message == (
        "The derived qualifier from the function name does not match the specified qualifier."
    )


@pytest.mark.parametrize(
    "text", ["", "a b", "f:", "f:a:b", "../f", "f/x", "größe", "f$", "arn:aws:s3:::bucket", "f\n", "f:$latest"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(text)
    assert caught.value.message == (
        f"1 validation error detected: Value '{text}' at 'functionName' failed to satisfy constraint: "
        f"Member must satisfy regular expression pattern: {NAME_PATTERN}"
    )


def test_lengths() -> None:
    assert parse("n" * 64)[2] == "n" * 64
    with pytest.raises(InvalidParameterValue, match="Member must have length less than or equal to 64"):
        parse("n" * 65)
    with pytest.raises(ValidationError, match="Member must have length less than or equal to 140"):
        parse("n" * 60 + ":" + "q" * 80)
    with pytest.raises(ValidationError, match="at 'qualifier' failed to satisfy constraint"):
        parse("f", "q" * 129)


@pytest.mark.parametrize("qualifier", ["", "a b", "$latest", "a:b", "live\n"])
def test_bad_qualifiers(qualifier: str) -> None:
    with pytest.raises(ValidationError, match="at 'qualifier' failed"):
        parse("f", qualifier)


def test_another_region_can_not_be_reached() -> None:
    with pytest.raises(ResourceNotFound) as caught:
        parse("arn:aws:lambda:us-east-1:123456789012:function:f")
    assert caught.value.message == "Functions from 'us-east-1' are not reachable in this region ('eu-west-1')"


@given(st.text(max_size=160), st.none() | st.text(max_size=130))
def test_any_text_is_a_name_or_an_api_error(text: str, qualifier: str | None) -> None:
    try:
        parse(text, qualifier)
    except ApiError as error:
        status = error.status
    else:
        status = 200
    assert status < 500


@given(
    st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True), st.none() | st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True)
)
def test_an_arn_is_read_back(name: str, qualifier: str | None) -> None:
    key = FunctionKey("123456789012", "eu-west-1", name)
    assert parse_function_ref(key.arn(qualifier), None, *HERE) == (key, qualifier)

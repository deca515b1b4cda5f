"""CBOR against the examples of RFC 8949, appendix A, and against itself."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.wire.cbor import CborError, decode, encode

#: Those of the RFC's examples that use the supported part.
EXAMPLES: list[tuple[str, Any]] = [
    ("00", 0),
    ("17", 23),
    ("1818", 24),
    ("1903e8", 1000),
    ("1a000f4240", 1000000),
    ("1b000000e8d4a51000", 1000000000000),
    ("1bffffffffffffffff", 18446744073709551615),
    ("3bffffffffffffffff", -18446744073709551616),
    ("20", -1),
    ("3903e7", -1000),
    ("fb3ff199999999999a", 1.1),
    ("f93c00", 1.0),
    ("f97bff", 65504.0),
    ("fa47c35000", 100000.0),
    ("f90001", 5.960464477539063e-08),
    ("fbc010666666666666", -4.1),
    ("f97c00", math.inf),
    ("fbfff0000000000000", -math.inf),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("f7", None),
    ("c11a514b67b0", dt.datetime(2013, 3, 21, 20, 4, tzinfo=dt.UTC)),
    ("c1fb41d452d9ec200000", dt.datetime(2013, 3, 21, 20, 4, 0, 500000, dt.UTC)),
    ("40", b""),
    ("4401020304", b"\x01\x02\x03\x04"),
    ("60", ""),
    ("62c3bc", "ü"),
    ("64f0908591", "\U00010151"),
    ("80", []),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("a0", {}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("5f42010243030405ff", b"\x01\x02\x03\x04\x05"),
    ("7f657374726561646d696e67ff", "streaming"),
    ("9fff", []),
    ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
    ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
]


@pytest.mark.parametrize(("text", "value"), EXAMPLES)
def test_examples_of_the_rfc(text: str, value: Any) -> None:
    assert decode(bytes.fromhex(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18",
        "1c",
        "ff",
        "5b7fffffffffffffff",
        "9bffffffffffffffff",
        "81ff",
        "a1ff",
        "a10102",
        "bf6161ff",
        "5f6161ff",
        "5f5f4101ffff",
        "61ff",
        "0000",
        "c16161",
        "c1f97e00",
        "c1fb7fefffffffffffff",
        "c249010000000000000000",
        "d81c81d81d00",
        "e0",
        "f818",
        "81" * 100 + "00",
        "d9010280",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(CborError):
        decode(bytes.fromhex(text))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)).map(
        lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=dt.UTC)
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcü", max_size=5), inner, max_size=4),
)


@given(VALUES)
def test_what_is_written_is_read(value: Any) -> None:
    assert decode(encode(value)) == value


@given(VALUES, st.data())
def test_a_cut_item_is_refused(value: Any, data: st.DataObject) -> None:
    whole = encode(value)
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CborError):
        decode(whole[:length])


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        decode(body)
    except CborError:
        pass


def test_only_what_it_knows_is_written() -> None:
    for value in ({1, 2}, 2**64, object()):
        with pytest.raises(TypeError):
            encode(value)

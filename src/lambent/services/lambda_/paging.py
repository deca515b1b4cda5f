"""Pages of lists: how many at once, and a marker that says after which row to go on.

A marker holds the key of the last row of its page, not a count, so that rows made or deleted between two
calls neither repeat nor hide others. Clients must not read it, so it is opaque; whatever they send instead is
refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue
from lambent.store.records import ORDINAL_MAX, VersionRecord

T = TypeVar("T")
K = TypeVar("K")


class VersionMarker(msgspec.Struct, frozen=True, array_like=True):
    """Place in a list of versions, of one function or of a whole region."""

    name: str
    ordinal: Annotated[int, msgspec.Meta(ge=-1, le=ORDINAL_MAX)]


class NameMarker(msgspec.Struct, frozen=True, array_like=True):
    """Place in a list that is ordered by names."""

    name: str


def version_marker(record: VersionRecord) -> VersionMarker:
    return VersionMarker(record.key.name, record.ordinal)


_MARKER_MAX_CHARS = 1_024


def page_size(params: dict[str, Any], most: int = limits.LIST_MAX) -> int:
    """How many rows to answer: MaxItems, but never more than AWS gives."""
    return min(int(params.get("MaxItems", limits.LIST_MAX)), most)


def page(found: Sequence[T], size: int, key: Callable[[T], object]) -> tuple[Sequence[T], str | None]:
    """The page out of `found`, which was read one row longer, and the marker of the next one if there is
    one."""
    if len(found) <= size:
        return found, None
    rows = found[:size]
    return rows, base64.urlsafe_b64encode(msgspec.msgpack.encode(key(rows[-1]))).decode()


def after(params: dict[str, Any], kind: type[K], first: K) -> K:
    """Where a page begins: the key in `Marker`, or `first`. Raises InvalidParameterValue."""
    marker = params.get("Marker")
    if not marker:
        return first
    try:
        if len(marker) > _MARKER_MAX_CHARS:
            raise ValueError("too long")
        return msgspec.msgpack.decode(base64.b64decode(marker.encode(), b"-_", validate=True), type=kind)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise InvalidParameterValue("Marker is not one that this list has returned.") from error

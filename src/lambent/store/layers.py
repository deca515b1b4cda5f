"""Layers and their versions in the tables: the repository beside `functions`, for the same open transaction.

A layer is a name and the newest number given out; its versions come and go, the numbers do not come back.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from lambent.store.records import LayerKey, LayerVersionRecord
from lambent.store.schema import LAYER_VERSIONS, LAYERS

_encode = msgspec.msgpack.Encoder().encode
_VERSION = msgspec.msgpack.Decoder(LayerVersionRecord)
_COLUMNS = LAYER_VERSIONS.c


class LayerRows:
    """The rows of the layers' tables, in one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def next_version(self, key: LayerKey) -> int:
        """Give out the layer's next number; the layer is there from the first one on."""
        layer = and_(*(LAYERS.c[name] == value for name, value in key._asdict().items()))
        found = self._connection.scalar(select(LAYERS.c.last_version).where(layer))
        number = (found or 0) + 1
        if found is None:
            self._connection.execute(insert(LAYERS).values(**key._asdict(), last_version=number))
        else:
            self._connection.execute(update(LAYERS).where(layer).values(last_version=number))
        return number

    def version(self, key: LayerKey, number: int) -> LayerVersionRecord | None:
        document = self._connection.scalar(select(_COLUMNS.document).where(_version(key, number)))
        return None if document is None else _VERSION.decode(document)

    def insert_version(self, record: LayerVersionRecord) -> None:
        """Keep a new version, under a number from `next_version`."""
        self._connection.execute(
            insert(LAYER_VERSIONS).values(
                **record.key._asdict(), number=record.version, code_size=record.code_size, document=_encode(record)
            )
        )

    def replace_version(self, record: LayerVersionRecord) -> None:
        """Write back a version that was read in this transaction."""
        where = _version(record.key, record.version)
        self._connection.execute(update(LAYER_VERSIONS).where(where).values(document=_encode(record)))

    def delete_version(self, key: LayerKey, number: int) -> bool:
        """Delete a version and its policy; whether it was there."""
        return self._connection.execute(delete(LAYER_VERSIONS).where(_version(key, number))).rowcount > 0

    def versions(self, key: LayerKey, *, before: int) -> Iterator[LayerVersionRecord]:
        """A layer's versions, newest first; those below the number `before`."""
        where = and_(_of(key), _COLUMNS.number < before)
        query = select(_COLUMNS.document).where(where).order_by(_COLUMNS.number.desc())
        for row in self._connection.execute(query):
            yield _VERSION.decode(row[0])

    def in_region(self, account: str, region: str, *, after: str = "") -> Iterator[LayerVersionRecord]:
        """All versions of a region by layer name, then newest first; those of layers past the name `after`."""
        where = and_(_COLUMNS.account == account, _COLUMNS.region == region, _COLUMNS.name > after)
        query = select(_COLUMNS.document).where(where).order_by(_COLUMNS.name, _COLUMNS.number.desc())
        for row in self._connection.execute(query):
            yield _VERSION.decode(row[0])

    def code_bytes_total(self, account: str, region: str) -> int:
        where = and_(_COLUMNS.account == account, _COLUMNS.region == region)
        return int(self._connection.scalar(select(func.sum(_COLUMNS.code_size)).where(where)) or 0)

    def referenced_code(self) -> set[str]:
        """Hex digests of the zips of all layer versions of every account."""
        rows = self._connection.execute(select(_COLUMNS.document))
        return {_VERSION.decode(row[0]).code_sha256 for row in rows}


def _of(key: LayerKey) -> ColumnElement[bool]:
    return and_(_COLUMNS.account == key.account, _COLUMNS.region == key.region, _COLUMNS.name == key.name)


def _version(key: LayerKey, number: int) -> ColumnElement[bool]:
    return and_(_of(key), _COLUMNS.number == number)

"""Capacity providers in the tables: the repository beside `functions`, for the same open transaction."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from lambent.store.records import CapacityKey, CapacityRecord
from lambent.store.schema import CAPACITY_PROVIDERS

_encode = msgspec.msgpack.Encoder().encode
_PROVIDER = msgspec.msgpack.Decoder(CapacityRecord)
_COLUMNS = CAPACITY_PROVIDERS.c


class CapacityRows:
    """The rows of the capacity providers' table, in one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def provider(self, key: CapacityKey) -> CapacityRecord | None:
        document = self._connection.scalar(select(_COLUMNS.document).where(_of(key)))
        return None if document is None else _PROVIDER.decode(document)

    def save(self, record: CapacityRecord) -> None:
        """Insert or replace."""
        values = {"document": _encode(record)}
        if self._connection.execute(update(CAPACITY_PROVIDERS).where(_of(record.key)).values(values)).rowcount == 0:
            self._connection.execute(insert(CAPACITY_PROVIDERS).values({**record.key._asdict(), **values}))

    def delete(self, key: CapacityKey) -> None:
        self._connection.execute(delete(CAPACITY_PROVIDERS).where(_of(key)))

    def providers(self, account: str, region: str, *, after: str, limit: int) -> list[CapacityRecord]:
        """Those of a region by name, past the name `after`."""
        where = and_(_COLUMNS.account == account, _COLUMNS.region == region, _COLUMNS.name > after)
        query = select(_COLUMNS.document).where(where).order_by(_COLUMNS.name).limit(limit)
        return [_PROVIDER.decode(row[0]) for row in self._connection.execute(query)]


def _of(key: CapacityKey) -> ColumnElement[bool]:
    return and_(*(_COLUMNS[name] == value for name, value in key._asdict().items()))

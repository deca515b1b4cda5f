"""Provisioned concurrency configurations in the tables: the repository beside `functions`, for the same open
transaction. What there is of the environments is not stored: after a restart they are made anew."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from lambent.model.names import FunctionKey
from lambent.store.records import ProvisionedRecord
from lambent.store.schema import FUNCTIONS, PROVISIONED

_encode = msgspec.msgpack.Encoder().encode
_CONFIG = msgspec.msgpack.Decoder(ProvisionedRecord)
_COLUMNS = PROVISIONED.c


class ProvisionedRows:
    """The rows of the provisioned concurrency configurations' table, in one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def config(self, key: FunctionKey, qualifier: str) -> ProvisionedRecord | None:
        """What a version or an alias was given."""
        document = self._connection.scalar(select(_COLUMNS.document).where(_config(key, qualifier)))
        return None if document is None else _CONFIG.decode(document)

    def save(self, record: ProvisionedRecord) -> None:
        """Insert or replace. The function's own row must be there first."""
        values = {"requested": record.requested, "document": _encode(record)}
        where = _config(record.key, record.qualifier)
        if self._connection.execute(update(PROVISIONED).where(where).values(values)).rowcount == 0:
            place = {**record.key._asdict(), "qualifier": record.qualifier}
            self._connection.execute(insert(PROVISIONED).values({**place, **values}))

    def delete(self, key: FunctionKey, qualifier: str) -> bool:
        """Whether there was one."""
        return self._connection.execute(delete(PROVISIONED).where(_config(key, qualifier))).rowcount > 0

    def configs(self, key: FunctionKey, *, after: str = "", limit: int | None = None) -> list[ProvisionedRecord]:
        """A function's configurations by qualifier; those past the qualifier `after`."""
        where = and_(_of(key), _COLUMNS.qualifier > after)
        query = select(_COLUMNS.document).where(where).order_by(_COLUMNS.qualifier).limit(limit)
        return [_CONFIG.decode(row[0]) for row in self._connection.execute(query)]

    def all_configs(self) -> Iterator[ProvisionedRecord]:
        """Every configuration of every account."""
        for row in self._connection.execute(select(_COLUMNS.document)):
            yield _CONFIG.decode(row[0])

    def unreserved_total(self, account: str, region: str, *, without: FunctionKey | None = None) -> int:
        """Sum over the functions of a region that have no reserved concurrency, leaving out one: what is taken from the
        unreserved pool. (Those with reserved concurrency have theirs out of it.)"""
        same = and_(*(_COLUMNS[name] == FUNCTIONS.c[name] for name in ("account", "region", "name")))
        where = and_(_COLUMNS.account == account, _COLUMNS.region == region, FUNCTIONS.c.reserved.is_(None))
        if without is not None:
            where = and_(where, _COLUMNS.name != without.name)
        query = select(func.sum(_COLUMNS.requested)).select_from(PROVISIONED.join(FUNCTIONS, same)).where(where)
        return int(self._connection.scalar(query) or 0)


def _of(key: FunctionKey) -> ColumnElement[bool]:
    return and_(*(_COLUMNS[name] == value for name, value in key._asdict().items()))


def _config(key: FunctionKey, qualifier: str) -> ColumnElement[bool]:
    return and_(_of(key), _COLUMNS.qualifier == qualifier)

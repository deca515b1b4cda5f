"""Function URLs in the tables: the repository beside `functions`, for the same open transaction."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from lambent.model.names import FunctionKey
from lambent.store.records import UrlRecord
from lambent.store.schema import FUNCTION_URLS

_encode = msgspec.msgpack.Encoder().encode
_URL = msgspec.msgpack.Decoder(UrlRecord)
_COLUMNS = FUNCTION_URLS.c


class UrlRows:
    """The rows of the function URLs' table, in one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def url(self, key: FunctionKey, qualifier: str | None) -> UrlRecord | None:
        """The URL of a function (None), or of one of its aliases."""
        query = select(_COLUMNS.document).where(_url(key, qualifier))
        document = self._connection.scalar(query)
        return None if document is None else _URL.decode(document)

    def insert_url(self, record: UrlRecord) -> None:
        """Keep a new URL. The function's own row must be there first."""
        spec = record.spec
        values = {**spec.key._asdict(), "qualifier": spec.qualifier or "", "url_id": spec.id}
        self._connection.execute(insert(FUNCTION_URLS).values(**values, document=_encode(record)))

    def replace_url(self, record: UrlRecord) -> None:
        """Write back a URL that was read in this transaction."""
        where = _url(record.spec.key, record.spec.qualifier)
        self._connection.execute(update(FUNCTION_URLS).where(where).values(document=_encode(record)))

    def delete_url(self, key: FunctionKey, qualifier: str | None) -> None:
        self._connection.execute(delete(FUNCTION_URLS).where(_url(key, qualifier)))

    def urls(self, key: FunctionKey, *, after: str | None = None, limit: int | None = None) -> list[UrlRecord]:
        """A function's URLs, its own first, then by alias; those past the qualifier `after`, or all."""
        where = _of(key) if after is None else and_(_of(key), _COLUMNS.qualifier > after)
        query = select(_COLUMNS.document).where(where).order_by(_COLUMNS.qualifier).limit(limit)
        return [_URL.decode(row[0]) for row in self._connection.execute(query)]

    def all_urls(self) -> Iterator[UrlRecord]:
        """Every function URL of every account."""
        for row in self._connection.execute(select(_COLUMNS.document)):
            yield _URL.decode(row[0])


def _of(key: FunctionKey) -> ColumnElement[bool]:
    return and_(*(_COLUMNS[name] == value for name, value in key._asdict().items()))


def _url(key: FunctionKey, qualifier: str | None) -> ColumnElement[bool]:
    return and_(_of(key), _COLUMNS.qualifier == (qualifier or ""))

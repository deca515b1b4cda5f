"""Functions, versions and aliases in the tables: the repository that one transaction of the Lambda API works
on.

Made for one connection inside `Database.run`, thrown away with it. Lists are ordered by the key columns and
continue *after* a given key, so that a page stays right when rows before it come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select, tuple_, update

from lambent.model.names import LATEST, FunctionKey
from lambent.store.capacity import CapacityRows
from lambent.store.layers import LayerRows
from lambent.store.provisioned import ProvisionedRows
from lambent.store.records import AliasRecord, FunctionRecord, PolicyRecord, VersionRecord, ordinal_of
from lambent.store.schema import ALIASES, FUNCTIONS, POLICIES, SETTINGS, VERSIONS
from lambent.store.urls import UrlRows

_encode = msgspec.msgpack.Encoder().encode
_FUNCTION = msgspec.msgpack.Decoder(FunctionRecord)
_VERSION = msgspec.msgpack.Decoder(VersionRecord)
_ALIAS = msgspec.msgpack.Decoder(AliasRecord)
_POLICY = msgspec.msgpack.Decoder(PolicyRecord)


class FunctionRows:
    """The rows of the function tables, in one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: The layers' tables, in the same transaction.
        self.layers = LayerRows(connection)
        #: The function URLs, likewise.
        self.urls = UrlRows(connection)
        #: Provisioned concurrency, likewise.
        self.provisioned = ProvisionedRows(connection)
        #: Capacity providers, likewise.
        self.capacity = CapacityRows(connection)

    # --- functions ---------------------------------------------------------------------------------------

    def function(self, key: FunctionKey) -> FunctionRecord | None:
        document = self._document(FUNCTIONS, _of(FUNCTIONS, key))
        return None if document is None else _FUNCTION.decode(document)

    def save_function(self, record: FunctionRecord) -> None:
        """Insert or replace."""
        values = {"reserved": record.reserved, "document": _encode(record)}
        self._save(FUNCTIONS, record.key._asdict(), values)

    def delete_function(self, key: FunctionKey) -> bool:
        """Delete a function with all its versions, aliases, policies and URLs; whether there was one."""
        return self._connection.execute(delete(FUNCTIONS).where(_of(FUNCTIONS, key))).rowcount > 0

    def all_functions(self) -> Iterator[FunctionRecord]:
        """Every function of every account."""
        for row in self._connection.execute(select(FUNCTIONS.c.document)):
            yield _FUNCTION.decode(row[0])

    def count_functions(self, account: str, region: str) -> int:
        where = _in_region(FUNCTIONS, account, region)
        return self._connection.scalar(select(func.count()).select_from(FUNCTIONS).where(where)) or 0

    def reserved_total(self, account: str, region: str, *, without: FunctionKey | None = None) -> int:
        """Reserved concurrency of all functions of a region, leaving out one."""
        where = _in_region(FUNCTIONS, account, region)
        if without is not None:
            where = and_(where, FUNCTIONS.c.name != without.name)
        return int(self._connection.scalar(select(func.sum(FUNCTIONS.c.reserved)).where(where)) or 0)

    # --- versions ----------------------------------------------------------------------------------------

    def version(self, key: FunctionKey, version: str = LATEST) -> VersionRecord | None:
        document = self._document(VERSIONS, _version(key, version))
        return None if document is None else _VERSION.decode(document)

    def save_version(self, record: VersionRecord) -> None:
        """Insert or replace. The function's own row must be there first."""
        values = {"code_size": record.code_size, "document": _encode(record)}
        self._save(VERSIONS, {**record.key._asdict(), "ordinal": record.ordinal}, values)

    def delete_version(self, key: FunctionKey, version: str) -> bool:
        """Delete a version, its policy and provisioned concurrency; whether it was there."""
        self.delete_policy(key, version)
        self.provisioned.delete(key, version)
        return self._connection.execute(delete(VERSIONS).where(_version(key, version))).rowcount > 0

    def versions(self, key: FunctionKey, *, after: int = -1, limit: int | None = None) -> list[VersionRecord]:
        """A function's versions, $LATEST first, then by number; those past the ordinal `after`."""
        where = and_(_of(VERSIONS, key), VERSIONS.c.ordinal > after)
        query = select(VERSIONS.c.document).where(where).order_by(VERSIONS.c.ordinal).limit(limit)
        return [_VERSION.decode(row[0]) for row in self._connection.execute(query)]

    def list_versions(
        self, account: str, region: str, *, every: bool, after: tuple[str, int], limit: int
    ) -> list[VersionRecord]:
        """Versions of all functions of a region, by name then number; only each $LATEST unless `every`."""
        columns = VERSIONS.c
        where = and_(
            _in_region(VERSIONS, account, region),
            tuple_(columns.name, columns.ordinal) > tuple_(*after),
        )
        if not every:
            where = and_(where, columns.ordinal == 0)
        query = select(columns.document).where(where).order_by(columns.name, columns.ordinal).limit(limit)
        return [_VERSION.decode(row[0]) for row in self._connection.execute(query)]

    def all_versions(self) -> Iterator[VersionRecord]:
        for row in self._connection.execute(select(VERSIONS.c.document)):
            yield _VERSION.decode(row[0])

    def code_bytes_total(self, account: str, region: str) -> int:
        """Code storage in use: the zip of every version of functions and layers, also where versions share one."""
        where = _in_region(VERSIONS, account, region)
        functions = self._connection.scalar(select(func.sum(VERSIONS.c.code_size)).where(where)) or 0
        return int(functions) + self.layers.code_bytes_total(account, region)

    def referenced_code(self) -> set[str]:
        """Hex digests of all zips that some version of a function or layer needs."""
        digests = self.layers.referenced_code()
        for record in self.all_versions():
            digests.add(record.code_sha256)
            digests.update(layer.code_sha256 for layer in record.layers)
            if record.serving is not None:
                digests.update((record.serving.code_sha256, *record.serving.layers))
        return digests

    def referenced_layers(self) -> set[tuple[str, ...]]:
        """The combinations of layers, as digests of zips in order, that some version of a function needs."""
        combinations = set()
        for record in self.all_versions():
            combinations.add(tuple(layer.code_sha256 for layer in record.layers))
            if record.serving is not None:
                combinations.add(record.serving.layers)
        return combinations - {()}

    # --- aliases -----------------------------------------------------------------------------------------

    def alias(self, key: FunctionKey, alias: str) -> AliasRecord | None:
        document = self._document(ALIASES, and_(_of(ALIASES, key), ALIASES.c.alias == alias))
        return None if document is None else _ALIAS.decode(document)

    def save_alias(self, record: AliasRecord) -> None:
        self._save(ALIASES, {**record.key._asdict(), "alias": record.alias}, {"document": _encode(record)})

    def delete_alias(self, key: FunctionKey, alias: str) -> bool:
        """Delete an alias, its policy and provisioned concurrency; whether it was there."""
        self.delete_policy(key, alias)
        self.provisioned.delete(key, alias)
        where = and_(_of(ALIASES, key), ALIASES.c.alias == alias)
        return self._connection.execute(delete(ALIASES).where(where)).rowcount > 0

    def aliases(self, key: FunctionKey, *, after: str = "") -> Iterator[AliasRecord]:
        """A function's aliases by name; those past the name `after`."""
        where = and_(_of(ALIASES, key), ALIASES.c.alias > after)
        query = select(ALIASES.c.document).where(where).order_by(ALIASES.c.alias)
        for row in self._connection.execute(query):
            yield _ALIAS.decode(row[0])

    def all_aliases(self) -> Iterator[AliasRecord]:
        for row in self._connection.execute(select(ALIASES.c.document)):
            yield _ALIAS.decode(row[0])

    # --- policies ----------------------------------------------------------------------------------------

    def policy(self, key: FunctionKey, qualifier: str | None) -> PolicyRecord | None:
        """The resource policy of a function (None), or of one of its versions or aliases."""
        document = self._document(POLICIES, _policy(key, qualifier))
        return None if document is None else _POLICY.decode(document)

    def save_policy(self, key: FunctionKey, qualifier: str | None, record: PolicyRecord) -> None:
        """Insert or replace. The function's own row must be there first."""
        self._save(POLICIES, {**key._asdict(), "qualifier": qualifier or ""}, {"document": _encode(record)})

    def delete_policy(self, key: FunctionKey, qualifier: str | None) -> None:
        self._connection.execute(delete(POLICIES).where(_policy(key, qualifier)))

    # --- settings ----------------------------------------------------------------------------------------

    def setting(self, name: str, default: bytes) -> bytes:
        """A value of this installation; `default` is kept when there was none."""
        found = self._connection.scalar(select(SETTINGS.c.value).where(SETTINGS.c.name == name))
        if found is None:
            self._connection.execute(insert(SETTINGS).values(name=name, value=default))
            return default
        return bytes(found)

    # --- helpers -----------------------------------------------------------------------------------------

    def _document(self, table: Table, where: ColumnElement[bool]) -> bytes | None:
        return self._connection.scalar(select(table.c.document).where(where))

    def _save(self, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
        # Update, else insert: the two databases spell "upsert" differently, and one thread writes.
        where = and_(*(table.c[column] == value for column, value in key.items()))
        if self._connection.execute(update(table).where(where).values(values)).rowcount == 0:
            self._connection.execute(insert(table).values({**key, **values}))


def _in_region(table: Table, account: str, region: str) -> ColumnElement[bool]:
    return and_(table.c.account == account, table.c.region == region)


def _of(table: Table, key: FunctionKey) -> ColumnElement[bool]:
    return and_(table.c.account == key.account, table.c.region == key.region, table.c.name == key.name)


def _version(key: FunctionKey, version: str) -> ColumnElement[bool]:
    return and_(_of(VERSIONS, key), VERSIONS.c.ordinal == ordinal_of(version))


def _policy(key: FunctionKey, qualifier: str | None) -> ColumnElement[bool]:
    return and_(_of(POLICIES, key), POLICIES.c.qualifier == (qualifier or ""))

"""Layers and policies in the tables, also of a database from before there were such tables."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert, inspect, select

from lambent.model.names import FunctionKey
from lambent.store import schema
from lambent.store.database import Database
from lambent.store.functions import FunctionRows
from lambent.store.records import (
    FunctionRecord,
    LayerKey,
    LayerUse,
    LayerVersionRecord,
    PolicyRecord,
)

from .test_database import spec, version

#: Documents as the first release wrote them.
OLD_VERSION = (
    "de000ca36b657993ac313233343536373839303132a965752d776573742d31a166ab7265766973696f6e5f6964a172ad6c61"
    "73745f6d6f646966696564a36e6f77ab636f64655f736861323536d940616261626162616261626162616261626162616261"
    "62616261626162616261626162616261626162616261626162616261626162616261626162616261626162a9636f64655f73"
    "697a6564a772756e74696d65aa707974686f6e332e3132a768616e646c6572a36d2e68a4726f6c65d92061726e3a6177733a"
    "69616d3a3a3030303030303030303030303a726f6c652f72a974696d656f75745f7303aa6d656d6f72795f6d6962cc80a774"
    "6d705f6d6962cd0200ab656e7669726f6e6d656e7481a141a162"
)
OLD_FUNCTION = "82a36b657993ac313233343536373839303132a965752d776573742d31a166a47461677381a161a162"

FUNCTION = FunctionKey("000000000000", "us-east-1", "f")
LAYER = LayerKey("000000000000", "us-east-1", "l")
POLICY = PolicyRecord(revision_id="p", statements=({"Sid": "s", "Condition": {"Bool": {"x": "true"}}},))


def layer_version(key: LayerKey, number: int, digest: str = "ef" * 32) -> LayerVersionRecord:
    return LayerVersionRecord(key=key, version=number, created="now", code_sha256=digest, code_size=10)


def test_layers_come_back_as_they_went_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")

        def write(connection: Connection) -> None:
            rows = FunctionRows(connection)
            for key in (LAYER, LAYER, LAYER._replace(name="k"), LAYER._replace(account="1" * 12)):
                rows.layers.insert_version(layer_version(key, rows.layers.next_version(key)))

        def read(connection: Connection) -> None:
            layers = FunctionRows(connection).layers
            record = layers.version(LAYER, 2)
            assert record == layer_version(LAYER, 2)
            record.policy, record.runtimes = POLICY, ("python3.12",)
            layers.replace_version(record)
            assert layers.version(LAYER, 2) == record
            assert [each.version for each in layers.versions(LAYER, before=100)] == [2, 1]
            assert [each.version for each in layers.versions(LAYER, before=2)] == [1]
            assert [each.arn[-3:] for each in layers.in_region(*LAYER[:2])] == ["k:1", "l:2", "l:1"]
            assert [each.arn[-3:] for each in layers.in_region(*LAYER[:2], after="k")] == ["l:2", "l:1"]
            assert layers.code_bytes_total(*LAYER[:2]) == 30
            assert FunctionRows(connection).code_bytes_total(*LAYER[:2]) == 30
            assert layers.delete_version(LAYER, 2)
            assert not layers.delete_version(LAYER, 2)
            assert layers.next_version(LAYER) == 3

        await database.run(write)
        await database.run(read)
        await database.close()

    asyncio.run(scenario())


def test_what_is_referenced(tmp_path: Path) -> None:
    one, two, three = (LayerUse(f"arn:{digest}", digest * 32, 1) for digest in ("11", "22", "33"))
    serving = msgspec.structs.replace(spec(), layers=("44" * 32,))

    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")

        def work(connection: Connection) -> None:
            rows = FunctionRows(connection)
            rows.save_function(FunctionRecord(key=FUNCTION))
            rows.save_version(version(FUNCTION, layers=(one, two), serving=serving))
            rows.save_version(version(FUNCTION, "1", layers=(three,)))
            rows.save_version(version(FUNCTION, "2"))
            rows.layers.insert_version(layer_version(LAYER, rows.layers.next_version(LAYER)))
            assert rows.referenced_code() == {each * 32 for each in ("ab", "cd", "ef", "11", "22", "33", "44")}
            assert rows.referenced_layers() == {("11" * 32, "22" * 32), ("33" * 32,), ("44" * 32,)}

        await database.run(work)
        await database.close()

    asyncio.run(scenario())


def test_policies_go_with_what_they_are_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")

        def work(connection: Connection) -> None:
            rows = FunctionRows(connection)
            rows.save_function(FunctionRecord(key=FUNCTION))
            for qualifier in (None, "1", "live"):
                rows.save_policy(FUNCTION, qualifier, PolicyRecord(revision_id="old", statements=()))
                rows.save_policy(FUNCTION, qualifier, POLICY)
                assert rows.policy(FUNCTION, qualifier) == POLICY
            rows.delete_version(FUNCTION, "1")
            rows.delete_alias(FUNCTION, "live")
            assert rows.policy(FUNCTION, "1") is None
            assert rows.policy(FUNCTION, "live") is None
            assert rows.policy(FUNCTION, None) == POLICY
            rows.delete_function(FUNCTION)
            assert rows.policy(FUNCTION, None) is None

        await database.run(work)
        await database.close()

    asyncio.run(scenario())


def test_a_database_of_the_first_schema(tmp_path: Path) -> None:
    """What the first release wrote is read, and gets the tables that it lacked."""
    document = bytes.fromhex(OLD_VERSION)
    key = {"account": "123456789012", "region": "eu-west-1", "name": "f"}

    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")

        def back(connection: Connection) -> None:
            schema.METADATA.drop_all(connection)
            schema.SCHEMA_VERSION.create(connection)
            schema.MIGRATIONS[0](connection)
            connection.execute(insert(schema.SCHEMA_VERSION).values(number=1))
            function = {**key, "reserved": None, "document": bytes.fromhex(OLD_FUNCTION)}
            connection.execute(insert(schema.FUNCTIONS).values(**function))
            connection.execute(insert(schema.VERSIONS).values(**key, ordinal=0, code_size=100, document=document))

        await database.run(back)
        assert "layers" not in await database.run(lambda connection: inspect(connection).get_table_names())
        await database.close()
        database = await Database.open(tmp_path / "state.db")

        def check(connection: Connection) -> None:
            assert set(inspect(connection).get_table_names()) == set(schema.METADATA.tables)
            assert connection.scalar(select(schema.SCHEMA_VERSION.c.number)) == len(schema.MIGRATIONS)
            rows = FunctionRows(connection)
            stored = rows.version(FunctionKey(**key))
            assert stored == version(FunctionKey(**key), environment={"A": "b"})
            assert rows.function(FunctionKey(**key)) == FunctionRecord(key=FunctionKey(**key), tags={"a": "b"})
            assert rows.layers.next_version(LAYER) == 1
            rows.save_policy(FunctionKey(**key), None, POLICY)

        await database.run(check)
        await database.close()

    asyncio.run(scenario())

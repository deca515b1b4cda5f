"""The database: whole transactions, on its own thread, that outlive the process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, inspect, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from lambent.model.function import VersionSpec
from lambent.model.names import FunctionKey
from lambent.store import schema
from lambent.store.database import Database
from lambent.store.functions import FunctionRows
from lambent.store.records import AliasRecord, FunctionRecord, Phase, VersionRecord, ordinal_of

KEY = FunctionKey("000000000000", "us-east-1", "f")


def version(key: FunctionKey = KEY, number: str = "$LATEST", **fields: object) -> VersionRecord:
    values: dict[str, object] = {
        "key": key,
        "version": number,
        "revision_id": "r",
        "last_modified": "now",
        "code_sha256": "ab" * 32,
        "code_size": 100,
        "runtime": "python3.12",
        "handler": "m.h",
        "role": "arn:aws:iam::000000000000:role/r",
        "timeout_s": 3,
        "memory_mib": 128,
        "tmp_mib": 512,
        **fields,
    }
    return VersionRecord(**values)  # type: ignore[arg-type]


def spec() -> VersionSpec:
    return VersionSpec(
        key=KEY,
        version="$LATEST",
        runtime="python3.12",
        handler="m.h",
        role="r",
        code_sha256="cd" * 32,
        memory_mib=128,
        timeout_s=3,
        tmp_mib=512,
    )


def test_records_come_back_as_they_went_in(tmp_path: Path) -> None:
    function = FunctionRecord(key=KEY, last_version=7, reserved=0, tags={"a": "ü"})
    record = version(environment={}, phase=Phase.UPDATING, serving=spec(), vpc={"SubnetIds": ["s"]})
    alias = AliasRecord(key=KEY, alias="live", version="1", additional={"2": 0.25}, revision_id="x")

    async def scenario() -> None:
        database = await Database.open(tmp_path / "deep" / "state.db")

        def write(connection: Connection) -> None:
            rows = FunctionRows(connection)
            rows.save_function(FunctionRecord(key=KEY))
            rows.save_function(function)
            rows.save_version(record)
            rows.save_alias(alias)

        await database.run(write)
        await database.close()
        database = await Database.open(tmp_path / "deep" / "state.db")

        def read(connection: Connection) -> None:
            rows = FunctionRows(connection)
            assert rows.function(KEY) == function
            assert rows.version(KEY) == record
            assert rows.alias(KEY, "live") == alias
            assert rows.referenced_code() == {"ab" * 32, "cd" * 32}
            assert rows.reserved_total(KEY.account, KEY.region) == 0
            assert rows.delete_function(KEY)
            assert rows.version(KEY) is None
            assert list(rows.all_aliases()) == []

        await database.run(read)
        await database.close()

    asyncio.run(scenario())


def test_lists_are_ordered_and_go_on_after_a_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")

        def work(connection: Connection) -> None:
            rows = FunctionRows(connection)
            for name in ("b", "a"):
                key = KEY._replace(name=name)
                rows.save_function(FunctionRecord(key=key))
                for number in ("10", "9", "$LATEST"):
                    rows.save_version(version(key, number))
            other = KEY._replace(region="eu-west-1")
            rows.save_function(FunctionRecord(key=other, reserved=9))
            rows.save_version(version(other))
            args = (KEY.account, KEY.region)
            every = rows.list_versions(*args, every=True, after=("a", 9), limit=3)
            names = [(each.key.name, each.version) for each in every]
            assert names == [("a", "10"), ("b", "$LATEST"), ("b", "9")]
            latest = rows.list_versions(*args, every=False, after=("", -1), limit=50)
            assert [each.key.name for each in latest] == ["a", "b"]
            assert [each.version for each in rows.versions(KEY._replace(name="a"), after=0)] == ["9", "10"]
            assert rows.code_bytes_total(*args) == 600
            assert rows.count_functions(*args) == 2
            assert rows.reserved_total(*args) == 0

        await database.run(work)
        await database.close()

    asyncio.run(scenario())


def test_one_thread_and_all_or_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")
        threads = await asyncio.gather(*(database.run(lambda _: threading.get_ident()) for _ in range(20)))
        assert len(set(threads)) == 1
        assert threads[0] != threading.get_ident()

        def half(connection: Connection) -> None:
            FunctionRows(connection).save_function(FunctionRecord(key=KEY))
            raise LookupError("half-way")

        with pytest.raises(LookupError):
            await database.run(half)
        assert await database.run(lambda connection: FunctionRows(connection).function(KEY)) is None

        def orphan(connection: Connection) -> None:
            FunctionRows(connection).save_version(version())

        with pytest.raises(IntegrityError):
            await database.run(orphan)
        await database.close()

    asyncio.run(scenario())


def test_a_cancelled_caller_leaves_a_whole_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")
        inside, go_on = threading.Event(), threading.Event()

        def slow(connection: Connection) -> None:
            inside.set()
            go_on.wait(10)
            FunctionRows(connection).save_function(FunctionRecord(key=KEY))

        running = asyncio.create_task(database.run(slow))
        await asyncio.to_thread(inside.wait, 10)
        queued = asyncio.create_task(database.run(lambda connection: pytest.fail("never begun")))
        await asyncio.sleep(0)
        for task in (running, queued):
            task.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        go_on.set()
        assert await database.run(lambda connection: FunctionRows(connection).function(KEY)) is not None
        await database.close()

    asyncio.run(scenario())


def test_sqlite_is_set_to_keep_what_it_was_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")

        def pragma(name: str) -> object:
            return lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert await database.run(pragma("journal_mode")) == "wal"  # type: ignore[arg-type]
        assert await database.run(pragma("synchronous")) == 2  # type: ignore[arg-type]
        assert await database.run(pragma("foreign_keys")) == 1  # type: ignore[arg-type]
        await database.close()

    asyncio.run(scenario())


def test_migrations_make_today_s_tables_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")
        assert await database.run(schema.migrate) == len(schema.MIGRATIONS)
        await database.close()

    asyncio.run(scenario())
    made = inspect(create_engine(f"sqlite:///{tmp_path / 'state.db'}"))
    assert set(made.get_table_names()) == set(schema.METADATA.tables)
    for name, table in schema.METADATA.tables.items():
        assert [column["name"] for column in made.get_columns(name)] == [column.name for column in table.columns]


def test_a_newer_database_is_not_touched(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await Database.open(tmp_path / "state.db")
        newer = update(schema.SCHEMA_VERSION).values(number=99)
        await database.run(lambda connection: connection.execute(newer))
        await database.close()
        with pytest.raises(schema.SchemaTooNew, match="schema 99"):
            await Database.open(tmp_path / "state.db")

    asyncio.run(scenario())


def test_the_schema_is_postgresql_s_too() -> None:
    for table in schema.METADATA.sorted_tables:
        text = str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
        assert f"CREATE TABLE {table.name}" in text
        assert "SERIAL" not in text


@pytest.mark.parametrize(
    ("text", "ordinal"),
    [("$LATEST", 0), ("1", 1), ("0", -1), ("01", -1), ("live", -1), ("٣", -1), ("9" * 19, -1), ("9" * 128, -1)],
)
def test_what_can_be_a_version(text: str, ordinal: int) -> None:
    assert ordinal_of(text) == ordinal
    assert ordinal_of(str(2**63 - 1)) == 2**63 - 1


def _write_for_ever(path: Path, told: Path) -> None:
    def tell(number: int) -> None:
        fresh = told.with_suffix(".new")
        fresh.write_text(str(number))
        fresh.replace(told)  # whoever reads sees a whole number

    async def run() -> None:
        database = await Database.open(path)
        for number in range(1_000_000):
            key = KEY._replace(name=f"f{number}")

            def work(connection: Connection, key: FunctionKey = key) -> None:
                rows = FunctionRows(connection)
                rows.save_function(FunctionRecord(key=key))
                rows.save_version(version(key))

            await database.run(work)
            tell(number)

    asyncio.run(run())


def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    told = tmp_path / "told"
    process = multiprocessing.get_context("spawn").Process(
        target=_write_for_ever, args=(tmp_path / "state.db", told), daemon=True
    )
    process.start()
    while not (told.exists() and int(told.read_text()) > 20):
        process.join(0.01)
        assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    async def check() -> None:
        database = await Database.open(tmp_path / "state.db")

        def read(connection: Connection) -> tuple[int, int]:
            functions = connection.execute(select(schema.FUNCTIONS.c.name)).all()
            versions = connection.execute(select(schema.VERSIONS.c.name)).all()
            return len(functions), len(versions)

        functions, versions = await database.run(read)
        assert functions == versions >= int(told.read_text()) + 1
        await database.close()

    asyncio.run(check())

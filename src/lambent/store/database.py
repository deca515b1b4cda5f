"""One database, one thread: where the control plane's state lives.

SQLAlchemy Core on SQLite (`<data>/state.db`) by default. Contract:

* `run(work)` gives `work` an open connection on the database's own thread and commits when it returns; an
  exception rolls everything back. One API call is one `run`, so nothing is ever half-created.
* The event loop never waits for a disk: no database call happens on it.
* What `run` has returned from survives: SQLite writes ahead (WAL) with synchronous=FULL, so not only a killed
  process but a power cut too loses nothing that a client was told. The price is one fsync for each writing
  call, on the cold path only.

Must not: know what the tables mean (see `schema` and the repositories).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from lambent.store import schema

T = TypeVar("T")

#: Another process (a CLI that reads) may hold the file for a moment.
BUSY_TIMEOUT_MS = 10_000


class Database:
    """An engine and the one thread that may touch it. Make it with `Database.open`.

    >>> database = await Database.open(data / "state.db")
    >>> count = await database.run(lambda connection: connection.scalar(select(func.count())...))
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lambent-database")

    @classmethod
    async def open(cls, where: Path | str) -> Database:
        """Open (and make or migrate) the database at a path of SQLite, or at an SQLAlchemy URL."""
        if isinstance(where, Path):
            os.makedirs(where.parent, exist_ok=True)
            url = f"sqlite+pysqlite:///{os.fspath(where)}"
        else:
            url = where
        engine = create_engine(url, pool_size=1, max_overflow=0)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        database = cls(engine)
        try:
            await database.run(schema.migrate)
        except BaseException:
            await database.close()
            raise
        return database

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction; for a cancelled caller it is either done whole or never begun."""
        future = self._thread.submit(self._in_transaction, work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.cancel()
            raise

    async def close(self) -> None:
        """Finish what has been handed in, then close the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=True)

    def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own guess at when to begin is turned off; `_begin_sqlite` says it.
    connection.isolation_level = None
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE: a transaction that reads first and writes later must not find the write lock taken half-way.
    connection.exec_driver_sql("BEGIN IMMEDIATE")

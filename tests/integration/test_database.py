"""Functions and a real PostgreSQL: how many connections it sees, told by itself (its log and pg_stat_activity)."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .harness import ROLE, RUNTIME, Function, Server, wait_until

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


class Shop(NamedTuple):
    postgres: Any
    package: bytes


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The database, and the package of examples/database with the driver in it."""
    package = tmp_path_factory.mktemp("database") / "database.zip"
    made = subprocess.run(
        [sys.executable, str(EXAMPLES / "bundle.py"), str(EXAMPLES / "database"), "--output", str(package)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"the driver can not be installed: {made.stderr.strip()[-200:]}")
    spec = importlib.util.spec_from_file_location("postgres", EXAMPLES / "postgres.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        running = module.Postgres()
    except module.PostgresUnavailable as error:
        pytest.skip(str(error))
    yield Shop(running, package.read_bytes())
    running.stop()


@pytest.fixture
def deploy(server: Server, shop: Shop) -> Iterator[Callable[[str], Function]]:
    """A function whose name is also that of its connections."""
    made: list[Function] = []

    def make(handler: str) -> Function:
        name = f"shop-{uuid.uuid4().hex[:8]}"
        server.lambda_.create_function(
            FunctionName=name, Runtime=RUNTIME, Handler=handler, Role=ROLE, Code={"ZipFile": shop.package},
            Timeout=20, MemorySize=256, Environment={"Variables": {"DATABASE_URL": shop.postgres.url(name)}},
        )  # fmt: skip
        made.append(Function(server, name))
        assert made[-1].wait_active()["State"] == "Active"
        return made[-1]

    yield make
    for function in made:
        server.lambda_.delete_function(FunctionName=function.name)


def frozen(server: Server, function: Function) -> bool:
    return all(row["frozen"] for row in server.environments(function))


def test_connecting_in_the_handler(shop: Shop, deploy: Callable[[str], Function]) -> None:
    function = deploy("as_is.handler")
    for number in range(1, 6):
        assert function.call({"id": number})["name"] == f"item {number}"
        assert shop.postgres.opened(function.name) == number
    wait_until(lambda: shop.postgres.connected(function.name) == 0, "all connections are closed")


def test_a_connection_made_at_init_survives_being_frozen(
    server: Server, shop: Shop, deploy: Callable[[str], Function]
) -> None:
    function = deploy("to_be.handler")
    processes = set()
    for number in range(1, 6):
        answer = function.call({"id": number})
        assert answer["price"] == number * 10
        processes.add(answer["database_process"])
        wait_until(lambda: frozen(server, function), "the environment is frozen")
        assert shop.postgres.connected(function.name) == 1, "while it is frozen, PostgreSQL still holds the connection"
    assert len(processes) == 1
    assert shop.postgres.opened(function.name) == 1


def test_a_connection_that_the_database_closed_is_replaced(
    server: Server, shop: Shop, deploy: Callable[[str], Function]
) -> None:
    function = deploy("to_be.handler")
    first = function.call({"id": 1})["database_process"]
    wait_until(lambda: frozen(server, function), "the environment is frozen")
    assert shop.postgres.sql(f"SELECT pg_terminate_backend({first})") == "t"
    wait_until(lambda: shop.postgres.connected(function.name) == 0, "the connection is closed")
    again = function.call({"id": 2})
    assert again["name"] == "item 2"
    assert again["database_process"] != first
    assert shop.postgres.opened(function.name) == 2


def test_twenty_environments_are_twenty_connections_and_close_them(
    server: Server, shop: Shop, deploy: Callable[[str], Function]
) -> None:
    function = deploy("to_be.handler")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: function.call({"id": number, "seconds": 3}), range(1, 21)))
        assert len({answer["environment"] for answer in answers}) == 20
        assert len({answer["database_process"] for answer in answers}) == 20
        assert shop.postgres.connected(function.name) == shop.postgres.opened(function.name) == 20
        list(pool.map(lambda number: function.call({"id": number}), range(1, 101)))
    assert shop.postgres.opened(function.name) == 20, "a hundred more requests, and not one connection more"
    # New code: the environments of the old one end, and the kernel closes what they had open.
    server.lambda_.update_function_configuration(FunctionName=function.name, Description="new")
    wait_until(lambda: shop.postgres.connected(function.name) == 0, "the environments' connections are closed")

"""The server that integration tests share, and functions that are gone after their test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from integration.harness import Function, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not need one of their own."""
    started = Server(tmp_path_factory.mktemp("shared") / "data")
    try:
        yield started
    except BaseException:
        started.kill()
        raise
    assert started.terminate() == 0, started.output


@pytest.fixture
def deploy(server: Server) -> Iterator[Callable[..., Function]]:
    """`server.deploy`, undone at the end of the test."""
    made: list[Function] = []

    def make(source: dict[str, bytes | str] | str, name: str = "t", **configuration: object) -> Function:
        made.append(server.deploy(source, name, **configuration))
        return made[-1]

    yield make
    for function in made:
        with contextlib.suppress(server.lambda_.exceptions.ResourceNotFoundException):
            server.lambda_.delete_function(FunctionName=function.name)

"""Fixtures of the Lambda API's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import Harness, request


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path).start()
    yield harness
    harness.stop()


@pytest.fixture
def client(server: Harness) -> Any:
    return server.client()


@pytest.fixture
def create(server: Harness, client: Any) -> Callable[..., Any]:
    """Create a function and wait until it is active."""

    def make(name: str = "f", **changes: Any) -> Any:
        answer = client.create_function(**request(name, **changes))
        server.release()
        return answer

    return make

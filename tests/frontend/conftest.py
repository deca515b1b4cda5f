"""Fixtures of the frontend's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from frontend.harness import Frontend


@pytest.fixture
def frontend() -> Iterator[Frontend]:
    with Frontend() as started:
        yield started

"""Which option makes Node.js wait for a debugger, by its release."""

from __future__ import annotations

import pytest

from lambent.worker.debugging import _has_inspect_wait


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("nodejs:18.v20", False),
        ("nodejs:20.v14", False),
        ("nodejs:20.v15", True),
        ("nodejs:21.v7", False),
        ("nodejs:22.v1", False),
        ("nodejs:22.v2", True),
        ("nodejs:24.v0", True),
        ("", False),
    ],
)
def test_inspect_wait(version: str, has: bool) -> None:
    assert _has_inspect_wait(version) is has

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.worker.api.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def either_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(use_uvloop=request.param == "uvloop")
    yield made
    made.close()

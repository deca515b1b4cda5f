"""From a name to a version: qualifiers, aliases with weights, and what can not be invoked."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lambent.dataplane.routing import AliasEntry, FunctionEntry, RoutingTable, VersionEntry
from lambent.model.errors import ResourceConflict, ResourceNotFound
from lambent.model.function import VersionSpec
from lambent.model.names import LATEST, FunctionKey, FunctionRef
from lambent.telemetry.lambda_metrics import LambdaMetrics

KEY = FunctionKey("000000000000", "us-east-1", "f")
ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"


def version(function: FunctionEntry, number: int, name: str) -> VersionEntry:
    spec = VersionSpec(
        key=KEY, version=name, runtime="python3.11", handler="m.h", role="r", code_sha256="0" * 64, memory_mib=128,
        timeout_s=3, tmp_mib=512,
    )  # fmt: skip
    return VersionEntry(number, function, spec)


@pytest.fixture
def table() -> RoutingTable:
    made = RoutingTable(random.Random(7), LambdaMetrics())
    function = FunctionEntry(1, KEY)
    function.versions = {name: version(function, n, name) for n, name in enumerate((LATEST, "1", "2", "3"), 10)}
    function.aliases = {
        "live": AliasEntry("1", ()),
        "canary": AliasEntry("1", (("2", 0.1),)),
        "third": AliasEntry("1", (("2", 0.25), ("3", 0.5))),
        "never": AliasEntry("1", (("2", 0.0),)),
        "always": AliasEntry("1", (("2", 1.0),)),
        "stale": AliasEntry("9", ()),
    }
    made.functions[KEY] = function
    return made


@pytest.mark.parametrize(
    ("qualifier", "runs", "arn"),
    [
        (None, LATEST, ARN),
        (LATEST, LATEST, f"{ARN}:$LATEST"),
        ("2", "2", f"{ARN}:2"),
        ("live", "1", f"{ARN}:live"),
    ],
)
def test_qualifiers(table: RoutingTable, qualifier: str | None, runs: str, arn: str) -> None:
    target = table.resolve(FunctionRef(KEY, qualifier))
    assert target.version.spec.version == runs
    assert target.arn == arn


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("canary", {"1": 0.9, "2": 0.1}),
        ("third", {"1": 0.25, "2": 0.25, "3": 0.5}),
        ("never", {"1": 1.0}),
        ("always", {"2": 1.0}),
    ],
)
def test_weights(table: RoutingTable, alias: str, expected: dict[str, float]) -> None:
    draws = 20_000
    seen = Counter(table.resolve(FunctionRef(KEY, alias)).version.spec.version for _ in range(draws))
    assert set(seen) == set(expected)
    for name, share in expected.items():
        assert seen[name] / draws == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("qualifier", ["4", "nobody", "stale"])
def test_unknown_qualifiers(table: RoutingTable, qualifier: str) -> None:
    with pytest.raises(ResourceNotFound) as caught:
        table.resolve(FunctionRef(KEY, qualifier))
    assert caught.value.message == f"Function not found: {ARN}:{qualifier}"


def test_an_unknown_function_is_named_with_its_latest_version(table: RoutingTable) -> None:
    other = FunctionKey("000000000000", "eu-west-1", "f")
    with pytest.raises(ResourceNotFound) as caught:
        table.resolve(FunctionRef(other, None))
    assert caught.value.message == "Function not found: arn:aws:lambda:eu-west-1:000000000000:function:f:$LATEST"


def test_a_pending_function_can_not_run_but_its_versions_can(table: RoutingTable) -> None:
    table.functions[KEY].pending = "Pending"
    for qualifier in (None, LATEST):
        with pytest.raises(ResourceConflict) as caught:
            table.resolve(FunctionRef(KEY, qualifier))
        assert caught.value.message == (
            "The operation cannot be performed at this time. The function is currently in the following state: Pending"
        )
    assert table.resolve(FunctionRef(KEY, "1")).version.spec.version == "1"

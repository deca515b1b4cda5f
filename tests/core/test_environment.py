"""The transition table: every state with every trigger, through the one door."""

from __future__ import annotations

import ast
import itertools
import pathlib

import pytest

import lambent.core
from lambent.core.admission import Account, Function, ScalingProfile, Version
from lambent.core.environment import (
    TRANSITIONS,
    Environment,
    EnvironmentState,
    Trigger,
    apply_transition,
    view,
)
from lambent.core.placement import Worker
from lambent.model.invocation import InitializationType

CORE = pathlib.Path(lambent.core.__path__[0])


def make_environment() -> Environment:
    function = Function(2, Account(1, 0, 1_000, 3_000), ScalingProfile.CURRENT, 0)
    return Environment(1, Version(3, function, 128, 1, 1), Worker(4, 1_024, 8), 0)


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(EnvironmentState, Trigger)))
def test_every_state_with_every_trigger(state: EnvironmentState, trigger: Trigger) -> None:
    environment = make_environment()
    environment.state = state
    after = TRANSITIONS.get((state, trigger))
    if after is None:
        with pytest.raises(AssertionError, match="environment 1"):
            apply_transition(environment, trigger, 5)
        assert environment.state is state
        assert environment.since_ns == 0
    else:
        apply_transition(environment, trigger, 5)
        assert environment.state is after
        assert environment.since_ns == 5


def test_every_state_can_be_reached_and_left() -> None:
    reached, frontier = {EnvironmentState.STARTING}, [EnvironmentState.STARTING]
    while frontier:
        state = frontier.pop()
        for (before, _), after in TRANSITIONS.items():
            if before is state and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(EnvironmentState)
    for state in EnvironmentState:
        leaves = any(before is state for before, _ in TRANSITIONS)
        assert leaves is (state is not EnvironmentState.DEAD)


def test_everything_alive_can_die_and_only_the_stopping_cannot_be_stopped() -> None:
    for state in set(EnvironmentState) - {EnvironmentState.DEAD}:
        assert TRANSITIONS[state, Trigger.DIED] is EnvironmentState.DEAD
        assert ((state, Trigger.STOP) in TRANSITIONS) is (state is not EnvironmentState.SHUTTING_DOWN)


def test_one_door() -> None:
    """`.state =` stands in the constructor and in apply_transition, nowhere else in core."""
    places = []
    for path in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            places += [path.name for target in targets if getattr(target, "attr", "") == "state"]
    assert places == ["environment.py", "environment.py"]


def test_core_is_pure_and_asserts() -> None:
    """Only these imports; on average two assertions for each function of more than four statements."""
    allowed = {"__future__", "collections", "enum", "heapq", "lambent", "msgspec", "typing"}
    functions = asserts = 0
    for path in CORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, path
            elif isinstance(node, ast.FunctionDef) and len(node.body) > 4:
                functions += 1
                asserts += sum(isinstance(inner, ast.Assert) for inner in ast.walk(node))
    assert asserts >= 2 * functions, (asserts, functions)


def test_view_shows_what_there_is() -> None:
    shown = view(make_environment())
    assert (shown.environment, shown.function, shown.version, shown.worker) == (1, 2, 3, 4)
    assert shown.state is EnvironmentState.STARTING
    assert shown.initialization_type is InitializationType.ON_DEMAND
    assert (shown.invocations, shown.request, shown.needs_init) == (0, None, False)

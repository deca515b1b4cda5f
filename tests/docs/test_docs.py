"""What the documents promise to name, they name: options, operations, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from lambent.cli.app import app
from lambent.services.logs import service as logs_service
from lambent.wire.service_model import load

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def test_every_command_and_option_is_in_the_reference() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert "up" in commands
    for name, command in commands.items():
        if not re.search(rf"`lambent {name}\b", REFERENCE):
            pytest.fail(f"docs/reference.md does not name `lambent {name}`")
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option not in ("--help", "--endpoint", "--json") and name != "plan":
                    assert option in REFERENCE, f"docs/reference.md does not name {option} of {name}"


def test_every_setting_has_its_variable() -> None:
    group = typer.main.get_command(app)
    up = group.commands["up"]  # type: ignore[attr-defined]
    for parameter in up.params:
        if parameter.envvar:
            assert str(parameter.envvar) in REFERENCE


def test_every_operation_of_the_logs_service_is_in_the_reference() -> None:
    source = Path(logs_service.__file__).read_text()
    operations = [name for name in re.findall(r'"([A-Z]\w+)": api\.', source) if name in load("logs")]
    assert len(operations) > 10
    for operation in operations:
        assert operation in REFERENCE


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text))
    assert len(named) > 20
    missing = [path for path in sorted(named) if not (ROOT / "src" / "lambent" / path).exists()]
    assert missing == []

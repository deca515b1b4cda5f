"""`--config FILE`: settings and workloads of single functions, as TOML or JSON.

For: planner.py. It must not judge values beyond their type: `Request.check()` does that for each function as it does
for the command line. Outcomes: for each function the fields of `Request` that differ; WorkloadError with one line.

    [functions.orders]
    rate = 20
    duration = 0.1
    reserved = 100
    provisioned = 5

A key is called as the option is, with _ for -. A function with a `rate` brings its own workload; without one it names
a function of --trace, --azure or --recording.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Final

from lambent.plan.workload import FUNCTIONS_MAX, WorkloadError

#: Key of the file: field of Request, its type.
_KEYS: Final[dict[str, tuple[str, type]]] = {
    "rate": ("rate", float),
    "rate_to": ("rate_to", float),
    "shape": ("shape", str),
    "spike_at": ("spike_at_s", float),
    "spike_seconds": ("spike_s", float),
    "arrivals": ("arrivals", str),
    "duration": ("duration_s", float),
    "variation": ("variation", float),
    "percentiles": ("percentiles", str),
    "init": ("init_s", float),
    "memory": ("memory_mib", int),
    "timeout": ("timeout_s", float),
    "reserved": ("reserved", int),
    "provisioned": ("provisioned", int),
    "provisioned_schedule": ("provisioned_schedule", str),
    "provisioned_target": ("provisioned_target", float),
    "provisioned_min": ("provisioned_min", int),
    "provisioned_max": ("provisioned_max", int),
    "snapstart": ("snap_start", bool),
    "restore": ("restore_s", float),
}
_OPTION_OF_ALL: Final = ("reserved", "provisioned")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Function: changed fields of Request, in the order of the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        whole = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (OSError, ValueError) as error:  # both parsers' errors are ValueErrors
        raise WorkloadError(f"{path}: cannot be read: {error}") from error
    functions = whole.get("functions")
    if set(whole) != {"functions"} or not isinstance(functions, dict) or not functions:
        raise WorkloadError(f"{path}: must be a table `functions` with a table for each function, and nothing else")
    if len(functions) > FUNCTIONS_MAX:
        raise WorkloadError(f"{path}: more than {FUNCTIONS_MAX:,} functions")
    return {name: _function(path, name, given) for name, given in functions.items()}


def _function(path: Path, name: str, given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise WorkloadError(f"{path}: {name}: must be a table")
    fields: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _KEYS:
            raise WorkloadError(f"{path}: {name}: there is no setting {key}; there are {', '.join(_KEYS)}")
        field, wanted = _KEYS[key]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not wanted:
            raise WorkloadError(f"{path}: {name}: {key} must be a {_WORDS[wanted]}, not {value!r}")
        fields[field] = (str(value),) if key in _OPTION_OF_ALL else value
    return fields


_WORDS: Final = {float: "number", int: "whole number", str: "text", bool: "true or false"}

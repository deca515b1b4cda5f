"""`lambent functions` and `lambent environments`."""

from __future__ import annotations

import sys
from typing import Any

from lambent.cli.client import client, own_page, print_json, told_errors

_STATE_STYLES = {
    "idle": "green",
    "busy": "bold yellow",
    "starting": "cyan",
    "init": "cyan",
    "resetting": "red",
}


def functions(endpoint: str, as_json: bool) -> None:
    with told_errors(endpoint):
        pages = client("lambda", endpoint).get_paginator("list_functions").paginate()
        found = [function for page in pages for function in page["Functions"]]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f["FunctionName"],
            f.get("Runtime", ""),
            f.get("Handler", ""),
            f"{f['MemorySize']} MB",
            f"{f['Timeout']} s",
            f"{f['CodeSize']:,}",
            f["LastModified"][:19],
        )
        for f in found
    ]
    _table(
        ("function", "runtime", "handler", "memory", "timeout", "code bytes", "modified"),
        rows,
        "no functions yet",
    )


def environments(endpoint: str, as_json: bool) -> None:
    found = own_page(endpoint, "environments")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(e["id"]),
            e["function"],
            e["version"] or "",
            f"[{_STATE_STYLES.get(e['state'], 'dim')}]{e['state']}[/]",
            _age(e["age_s"]),
            _age(e["in_state_s"]),
            str(e["invocations"]),
            f"{(e['memory_peak_bytes'] or 0) / 1_048_576:.0f} MB",
        )
        for e in found
    ]
    headings = ("id", "function", "version", "state", "age", "in state", "invocations", "memory")
    _table(headings, rows, "no environments")


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3_600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3_600:.0f} h {seconds % 3_600 // 60:.0f} min"


def _table(headings: tuple[str, ...], rows: list[tuple[Any, ...]], nothing: str) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        Console().print(nothing)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Piped, a row is a line, however long: for grep and awk.
    Console(width=None if sys.stdout.isatty() else 240).print(table)

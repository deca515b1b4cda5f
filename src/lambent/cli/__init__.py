"""The command line: `lambent up`, `deploy`, `invoke`, `logs`, `functions`, `environments`, `plan`, `doctor`.

Commands import what they need when they run: `lambent up` should not pay for an SDK, nor `lambent logs` for a server.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the `lambent` script."""
    from lambent.cli.app import app

    app()

"""The benchmark suite (`make bench`): Lambent against the floor, in one run, as one table and one JSON file.

The table's promises are judged, but a missed one fails the run only with --check: figures of a busy machine inform,
they do not gate. Functions of the warm measurements have 1,769 MB (one vCPU by Lambda's rule), the others 128 MB.

    python benchmarks/run.py [--quick] [--only warm] [--check] [--json FILE] [--floor-only]
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import machine
from figures import Figure, table
from measures import FULL, NEED_LAMBENT, QUICK, Bench
from measures import MEASURES as AGAINST_THE_FLOOR
from side_by_side import SIDE_BY_SIDE
from simulated import SIMULATED

MEASURES = {**AGAINST_THE_FLOOR, **SIDE_BY_SIDE, **SIMULATED}
RESULTS = Path(__file__).with_name("results") / "latest.json"


class Progress:
    """Says what is being measured: a spinner on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._name = ""
        self._began_s = time.monotonic()

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Frame one measurement."""
        self._name = name
        self._began_s = time.monotonic()
        if self._console.is_terminal:
            self._status.start()
        try:
            yield
        finally:
            self._status.stop()
        # Not in `finally`: what failed is not done.
        self._console.print(f"[green]done[/] {name} in {time.monotonic() - self._began_s:.0f} s")

    def step(self, text: str) -> None:
        """Say where the measurement is."""
        line = f"{self._name}: {text}"
        if self._console.is_terminal:
            self._status.update(escape(line))
        else:
            self._console.print(escape(line), highlight=False)


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    arguments.add_argument("--only", action="append", choices=list(MEASURES), help="may be given more than once")
    arguments.add_argument("--floor-only", action="store_true", help="measure the floor without Lambent")
    arguments.add_argument("--check", action="store_true", help="exit code 1 when a must is missed")
    arguments.add_argument("--json", type=Path, default=RESULTS, help="where the result is written")
    arguments.add_argument("--sandbox", default="namespace", help="as of `lambent up`")
    arguments.add_argument("--runtime", default=f"python3.{sys.version_info.minor}")
    arguments.add_argument("--floor-processes", type=int, default=8)
    arguments.add_argument(
        "--lambent", default=str(Path(sys.executable).with_name("lambent")), help="how Lambent is started"
    )
    return arguments.parse_args()


def measure(bench: Bench, names: list[str], progress: Progress, console: Console) -> list[Figure]:
    """Run the measurements; one that fails becomes a failed row, and the others still run."""
    figures: list[Figure] = []
    for name in names:
        try:
            with progress.measuring(name):
                figures += MEASURES[name](bench)
        except Exception as error:
            console.print(f"[bold red]failed[/] {name}: {escape(str(error))}")
            console.print_exception(max_frames=6)
            figures.append(Figure(name, "", None, failure=f"{type(error).__name__}, see above"))
    return figures


def main() -> int:
    """Measure, print the table, write the file."""
    options = parse()
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log file has no width to fit
    facts = machine.facts()
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    if load > cores / 2:
        console.print(f"[bold yellow]warning[/] load average {load:.1f} on {cores} cores: trust only the ratios")
    progress = Progress(console)
    bench = Bench(
        sizes=QUICK if options.quick else FULL,
        program=[] if options.floor_only else shlex.split(options.lambent),
        sandbox=options.sandbox,
        runtime=options.runtime,
        floor_processes=options.floor_processes,
        step=progress.step,
    )
    names = [
        name for name in options.only or MEASURES if not (options.floor_only and name in {*NEED_LAMBENT, *SIDE_BY_SIDE})
    ]
    began_s = time.time()
    figures = measure(bench, names, progress, console)
    facts["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    console.print(table(figures))
    record = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began_s)),
        "took_s": round(time.time() - began_s, 1),
        "machine": facts,
        "settings": {
            "sizes": asdict(bench.sizes),
            "sandbox": bench.sandbox,
            "runtime": bench.runtime,
            "floor_processes": bench.floor_processes,
            "lambent": bench.program,
        },
        "figures": [row.record() for row in figures],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {options.json}")
    missed = [row for row in figures if row.verdict == "missed"]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

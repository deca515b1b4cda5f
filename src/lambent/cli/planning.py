"""`lambent plan`: what a workload will do to an account, before anything is deployed.

For: reading options, telling errors in one line (exit status 2), and printing. It must not compute anything about the
workload: lambent.plan does. Outcomes: a table, or one JSON object (--json), and the files that were asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from lambent.plan.planner import Request
    from lambent.plan.recommend import Recommendation
    from lambent.plan.summary import Summary

_SHAPES = "steady, ramp (--rate to --rate-to), spike (--rate-to for a while), day (a wave from --rate to --rate-to)."


def plan(
    trace: Annotated[
        Path | None, typer.Option(help="CSV, plain or .gz: arrival_s,duration_s and, if you like, init_s, function.")
    ] = None,
    azure: Annotated[
        Path | None, typer.Option(help="Folder with counts per minute as in the Azure Functions 2019 data.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="Logs with REPORT lines: of aws logs tail, lambent logs, or filter-log-events.")
    ] = None,
    recording: Annotated[Path | None, typer.Option(help="What lambent up --record wrote, or lambent replay.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML or JSON: settings, and rates, of single functions that share the account.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds that a request takes, Init left out.")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson (by chance) or constant (evenly spaced).")] = "poisson",
    seconds: Annotated[
        float | None, typer.Option(help="Time to simulate; 3600 with --rate, otherwise all of the file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the chance: the same seed gives the same plan.")] = 1,
    shape: Annotated[str, typer.Option(help=_SHAPES)] = "steady",
    rate_to: Annotated[float | None, typer.Option(help="The other rate of --shape.")] = None,
    spike_at: Annotated[float | None, typer.Option(help="Second at which the spike begins; default: a third.")] = None,
    spike_seconds: Annotated[float, typer.Option(help="How long the spike lasts.")] = 60,
    variation: Annotated[
        float, typer.Option(help="Of durations: standard deviation over mean; above 0 they are lognormal.")
    ] = 0,
    percentiles: Annotated[
        str | None, typer.Option(help="Durations by percentiles, in seconds: 50=0.1,99=0.8,100=3.")
    ] = None,
    init: Annotated[float, typer.Option(help="Seconds of Init in a cold start.")] = 0,
    memory: Annotated[int, typer.Option(help="MemorySize in MB; only the cost depends on it.")] = 128,
    timeout: Annotated[float, typer.Option(help="Timeout of the functions in seconds.")] = 900,
    reserved: Annotated[
        list[str] | None, typer.Option(help="Reserved concurrency of each function, or NAME=N for one; repeat it.")
    ] = None,
    provisioned: Annotated[
        list[str] | None, typer.Option(help="Provisioned concurrency of each function, or NAME=N for one; repeat it.")
    ] = None,
    provisioned_schedule: Annotated[
        str | None, typer.Option(help="08:00=50,20:00=5, by the time of the day; the plan begins at midnight.")
    ] = None,
    provisioned_target: Annotated[
        float | None, typer.Option(help="Target tracking: the utilisation to keep, such as 0.7.")
    ] = None,
    provisioned_min: Annotated[int | None, typer.Option(help="Target tracking: never less.")] = None,
    provisioned_max: Annotated[int | None, typer.Option(help="Target tracking: never more.")] = None,
    snapstart: Annotated[
        bool, typer.Option("--snapstart", help="SnapStart: cold starts restore a snapshot instead of Init.")
    ] = False,
    restore: Annotated[float, typer.Option(help="Seconds that a restore takes.")] = 0,
    worker_memory_mib: Annotated[
        int | None, typer.Option(help="Memory of the machines for environments; without it there is no end.")
    ] = None,
    memory_overcommit: Annotated[float, typer.Option(help="Sum of MemorySize over that memory.")] = 1,
    idle_seconds: Annotated[
        float | None, typer.Option(help="Idle environments end after this; default: the profile's.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="current and classic: scaling rates; aws: and lifetimes as in logs of AWS.")
    ] = "current",
    account_concurrency: Annotated[int, typer.Option(help="Concurrent executions of the account.")] = 1_000,
    architecture: Annotated[str, typer.Option(help="x86_64 or arm64; only the cost depends on it.")] = "x86_64",
    assignments: Annotated[
        Path | None, typer.Option(help="Write arrival_s,environment,cold of each request to this file.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots, one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots; needs matplotlib.")] = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Find the smallest settings that meet the goals below.")
    ] = False,
    throttles: Annotated[str | None, typer.Option(help='Goal: at most so many, or "<0.5%"; default 0.')] = None,
    cold_starts: Annotated[str | None, typer.Option(help='Goal: at most so many, or "<0.1%".')] = None,
    p99: Annotated[str | None, typer.Option(help="Goal for latency, such as 300ms.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Predict concurrency, cold starts, throttles and cost, with the scheduler that really runs.

    `lambent plan --rate 20 --duration 0.1`: how many environments does that take, and why?
    """
    from lambent.plan.planner import Request
    from lambent.plan.workload import WorkloadError

    request = Request(
        trace=trace, azure=azure, reports=reports, rate=rate, duration_s=duration, arrivals=arrivals,
        seconds=seconds, seed=seed, shape=shape, rate_to=rate_to, spike_at_s=spike_at, spike_s=spike_seconds,
        variation=variation, percentiles=percentiles, init_s=init, memory_mib=memory, timeout_s=timeout,
        reserved=tuple(reserved or ()), provisioned=tuple(provisioned or ()), idle_s=idle_seconds, profile=profile,
        provisioned_schedule=provisioned_schedule, provisioned_target=provisioned_target,
        provisioned_min=provisioned_min, provisioned_max=provisioned_max, snap_start=snapstart, restore_s=restore,
        worker_memory_mib=worker_memory_mib, memory_overcommit=memory_overcommit, recording=recording, config=config,
        account_concurrency=account_concurrency, architecture=architecture,
    )  # fmt: skip
    found: Recommendation | None = None
    with told_errors():
        request.check()
        if png is not None:
            from lambent.plan.plots import check_matplotlib

            check_matplotlib()
        if recommend:
            found = _recommended(request, throttles, cold_starts, p99)
            if found.best is not None:
                from lambent.plan.recommend import chosen

                request = chosen(request, found.best.choice, found.best.idle_s_given)
        elif throttles is not None or cold_starts is not None or p99 is not None:
            raise WorkloadError("--throttles, --cold-starts and --p99 are goals of --recommend: add it")
        summary = _simulated(request, assignments)
        _write_reports(request, summary, html, png, found)
    if as_json:
        from lambent.cli.client import print_json

        print_json(summary.as_json() | ({} if found is None else {"recommendation": found.as_json()}))
    else:
        if found is not None:
            _print_recommendation(found)
        _print(request, summary)
        for file in (assignments, html, png):
            if file is not None:
                typer.echo(f"written: {file}")
    if found is not None and found.best is None:
        raise typer.Exit(1)


def _recommended(request: Request, throttles: str | None, cold_starts: str | None, p99: str | None) -> Recommendation:
    from lambent.plan.recommend import Goals, recommend

    goals = Goals.parse(throttles, cold_starts, p99)
    with _progress() as progress:
        return recommend(request, goals, progress)


def _write_reports(
    request: Request, summary: Summary, html: Path | None, png: Path | None, found: Recommendation | None
) -> None:
    if html is not None:
        from lambent.plan.page import page

        html.write_text(page(request, summary, found), encoding="utf-8")
    if png is not None:
        from lambent.plan.plots import write_png

        write_png(png, request, summary)


def _print_recommendation(found: Recommendation) -> None:
    from rich.console import Console
    from rich.table import Table

    from lambent.plan.words import option_words

    console = Console(highlight=False)
    if found.best is None:
        console.print(f"[bold]No setting meets the goals[/]: {found.why}.\n")
    else:
        console.print(f"[bold]Recommended: {option_words(found.best)}[/]: {found.why}.")
        if found.alternative is not None:
            console.print(f"Or, where the idle time is not yours to set: [bold]{option_words(found.alternative)}[/].")
        console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = "provisioned", "reserved", "idle", "throttles", "cold starts", "p99", "environments", "30 days", "goals"
    for heading in headings:
        table.add_column(heading, justify="right")
    for trial in found.trials:
        summary = trial.summary
        table.add_row(
            f"{trial.provisioned:,}",
            "none" if trial.reserved is None else f"{trial.reserved:,}",
            f"{trial.idle_s:,g} s",
            f"{summary.throttles:,} ({summary.throttle_rate:.3%})",
            f"{summary.cold_starts:,} ({summary.cold_start_rate:.3%})",
            f"{summary.latency_ms['p99']:,.4g} ms",
            f"{summary.mean_environments:,.4g}",
            f"{summary.cost.month_usd:,.2f} USD",
            "met" if trial.met else "missed",
            style="bold" if trial is found.best or trial is found.alternative else None,
        )
    console.print(table)
    console.print("\nWith the recommended setting:\n" if found.best else "\nAs it was given:\n")


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """What is wrong with the input, in one line; exit status 2."""
    from lambent.plan.workload import WorkloadError

    try:
        yield
    except (WorkloadError, OSError) as error:
        typer.echo(f"lambent: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


def _simulated(request: Request, assignments: Path | None) -> Summary:
    from lambent.plan.planner import simulate

    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        if assignments is not None:
            file = stack.enter_context(assignments.open("w", encoding="utf-8"))
        return simulate(request, stack.enter_context(_progress()), file)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Says how far it is, on the terminal, when it takes more than a second."""
    from rich.console import Console

    console = Console(stderr=True)
    begun_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        status = None

        def tell(invocations: int, now_ns: int) -> None:
            nonlocal status
            if not console.is_terminal or time.monotonic() - begun_s < 1:
                return
            text = f"{invocations:,} invocations, {now_ns / 1e9:,.0f} s"
            if status is None:
                status = stack.enter_context(console.status(text))
            status.update(text)

        yield tell


def _print(request: Request, summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    from lambent.plan.words import lines, notes, opening

    console = Console(highlight=False)
    console.print(opening(request, summary))
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("")
    table.add_column("simulated", justify="right")
    table.add_column("formula", justify="right")
    table.add_column("in words", overflow="fold", style="dim")
    for line in lines(request, summary):
        table.add_row(*dataclasses.astuple(line))
    console.print()
    console.print(table)
    for note in notes(request, summary):
        console.print(f"\n{note}")

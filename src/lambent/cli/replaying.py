"""`lambent replay`: drive a live server with a workload, and set what the planner foresaw beside what happened.

For: reading options, deploying the functions that are called (and deleting them), and printing. It must not send the
workload itself: lambent.plan.replay does. Outcomes: a table or one JSON object; exit status 1 for errors of the server,
2 for bad input.

The function that is deployed sleeps for the duration that a request brings, and says which environment it is. With
`--function` one that is there is called as it is, with `--payload`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lambent.cli.planning import told_errors as told_input_errors

if TYPE_CHECKING:
    from lambent.plan.planner import Request, Source
    from lambent.plan.replay import Target
    from lambent.plan.workload import Arrival, PlannedFunction

_SLEEPER = """
import os, time, uuid
time.sleep(float(os.environ["REPLAY_INIT_S"]))
KIND = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
name, first = uuid.uuid4().hex, True


def handler(event, context):
    global first
    was, first = first, False
    time.sleep(event["s"])
    return {"e": name, "c": was, "i": KIND}
"""
_SECONDS_DEFAULT = 60.0
_FUNCTIONS_MAX = 200
_PATIENCE_S = 180.0


def replay(
    trace: Annotated[Path | None, typer.Option(help="As for plan.")] = None,
    recording: Annotated[Path | None, typer.Option(help="As for plan.")] = None,
    config: Annotated[Path | None, typer.Option(help="As for plan.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds that a request sleeps.")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson or constant.")] = "poisson",
    seconds: Annotated[float | None, typer.Option(help="How long; 60 with --rate, otherwise all of the file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the chance.")] = 1,
    shape: Annotated[str, typer.Option(help="As for plan.")] = "steady",
    rate_to: Annotated[float | None, typer.Option(help="The other rate of --shape.")] = None,
    spike_at: Annotated[float | None, typer.Option(help="Second at which the spike begins.")] = None,
    spike_seconds: Annotated[float, typer.Option(help="How long the spike lasts.")] = 60,
    variation: Annotated[float, typer.Option(help="Of durations: standard deviation over mean.")] = 0,
    percentiles: Annotated[str | None, typer.Option(help="Durations by percentiles, as for plan.")] = None,
    init: Annotated[float, typer.Option(help="Seconds that Init sleeps.")] = 0,
    memory: Annotated[int, typer.Option(help="MemorySize in MB.")] = 128,
    timeout: Annotated[float, typer.Option(help="Timeout in seconds.")] = 60,
    reserved: Annotated[list[str] | None, typer.Option(help="N, or NAME=N; repeat it.")] = None,
    provisioned: Annotated[list[str] | None, typer.Option(help="N, or NAME=N; repeat it.")] = None,
    idle_seconds: Annotated[float | None, typer.Option(help="What the server was given, if not 600.")] = None,
    function: Annotated[str | None, typer.Option(help="Call this function (NAME or NAME:QUALIFIER).")] = None,
    payload: Annotated[str, typer.Option(help="JSON for --function.")] = "{}",
    record: Annotated[Path | None, typer.Option(help="Write what was seen; lambent plan --recording reads it.")] = None,
    endpoint: Annotated[
        str, typer.Option("--endpoint", envvar="LAMBENT_ENDPOINT", help="Where the server listens.")
    ] = "http://127.0.0.1:9400",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Drive a live server with a workload, and compare it with the plan."""
    from lambent.cli.client import told_errors
    from lambent.plan.planner import Request, source

    if seconds is None and (rate is not None or config is not None):
        seconds = _SECONDS_DEFAULT
    request = Request(
        trace=trace, recording=recording, config=config, rate=rate, duration_s=duration, arrivals=arrivals,
        seconds=seconds, seed=seed, shape=shape, rate_to=rate_to, spike_at_s=spike_at, spike_s=spike_seconds,
        variation=variation, percentiles=percentiles, init_s=init, memory_mib=memory, timeout_s=timeout,
        reserved=tuple(reserved or ()), provisioned=tuple(provisioned or ()), idle_s=idle_seconds,
    )  # fmt: skip
    with told_input_errors():
        request.check()
        found = source(request)
        workload = list(found.arrivals)
        _check(found, request, function, payload)
    with told_errors(endpoint), told_input_errors():
        result = _Replay(endpoint, request, found, workload, function, payload, record).run()
    if as_json:
        from lambent.cli.client import print_json

        print_json(result)
    else:
        _print(result)
        if record is not None:
            typer.echo(f"written: {record}")


def _check(found: Source, request: Request, function: str | None, payload: str) -> None:
    import json

    from lambent.plan.workload import WorkloadError

    if not 1 <= len(found.functions) <= (1 if function is not None else _FUNCTIONS_MAX):
        raise WorkloadError(
            f"the workload has {len(found.functions):,} functions; a replay takes at most {_FUNCTIONS_MAX}, and one "
            "with --function"
        )
    if any(each.snap_start for each in found.functions):
        raise WorkloadError("a replay deploys no functions with SnapStart; give --function")
    changing = [f for f in found.functions if f.provisioning and (f.provisioning.schedule or f.provisioning.target)]
    if changing:
        raise WorkloadError("a replay keeps provisioned concurrency as it is: no schedule, no target")
    if function is not None and (request.reserved or request.provisioned):
        raise WorkloadError("--function is called as it is deployed; leave --reserved and --provisioned out")
    try:
        json.loads(payload)
    except ValueError as error:
        raise WorkloadError(f"--payload is not JSON: {error}") from None


class _Replay:
    def __init__(
        self,
        endpoint: str,
        request: Request,
        source: Source,
        workload: list[Arrival],
        function: str | None,
        payload: str,
        record: Path | None,
    ) -> None:
        from lambent.cli.client import client

        self._endpoint = endpoint
        self._request = request
        self._source = source
        self._workload = workload
        self._function = function
        self._payload = payload
        self._record = record
        self._lambda = client("lambda", endpoint)
        self._prefix = f"lambent-replay-{uuid.uuid4().hex[:8]}"

    def run(self) -> dict[str, Any]:
        from lambent.plan.replay import calibrated, differences, drive, measured, write

        with self._targets() as targets:
            before = self._environments(targets) if self._function is not None else set()
            credentials = self._lambda._request_signer._credentials
            region = self._lambda.meta.region_name
            samples = drive(self._endpoint, targets, self._workload, credentials.access_key, region)
            listed = len(self._environments(targets) - before)
            server_peak = self._server_peak(targets)
        seen = dataclasses.asdict(measured(samples, listed, server_peak))
        adjusted = calibrated(self._workload, samples, durations_known=self._function is None)
        planned, predicted = self._plan(self._workload), self._plan(adjusted)
        if self._record is not None:
            write(self._record, [each.name for each in self._source.functions], adjusted, samples)
        return {
            "planned": planned,
            "predicted": predicted,
            "measured": seen,
            "differences": differences(predicted, seen),
        }

    def _plan(self, workload: Sequence[Arrival]) -> dict[str, Any]:
        from lambent.plan.planner import Source, run

        account = self._lambda.get_account_settings()["AccountLimit"]["ConcurrentExecutions"]
        summary = run(self._request, Source(self._source.functions, workload, None, account_concurrency=account))
        figures = ("invocations", "environments_started", "cold_starts", "throttles", "throttles_by_reason")
        found: dict[str, Any] = {key: getattr(summary, key) for key in figures}
        found |= {"peak_concurrency": summary.peak_concurrency, "latency_ms": summary.latency_ms}
        return found | {"spillovers": summary.provisioned.spillovers if summary.provisioned else 0}

    def _environments(self, targets: Sequence[Target]) -> set[int]:
        from lambent.cli.client import own_page

        names = {target.name for target in targets}
        return {row["id"] for row in own_page(self._endpoint, "environments") if row["function"] in names}

    def _server_peak(self, targets: Sequence[Target]) -> int | None:
        """ConcurrentExecutions of the one function that was called, if nobody else could call it."""
        from lambent.cli.client import client

        if len(targets) != 1 or self._function is not None:
            return None
        now = datetime.datetime.now(datetime.UTC)
        found = client("cloudwatch", self._endpoint).get_metric_statistics(
            Namespace="AWS/Lambda",
            MetricName="ConcurrentExecutions",
            Dimensions=[{"Name": "FunctionName", "Value": targets[0].name}],
            StartTime=now - datetime.timedelta(days=1),
            EndTime=now + datetime.timedelta(minutes=2),
            Period=3_600,
            Statistics=["Maximum"],
        )
        return max((int(point["Maximum"]) for point in found["Datapoints"]), default=None)

    # --- functions ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _targets(self) -> Iterator[list[Target]]:
        if self._function is not None:
            yield [self._given(self._function)]
            return
        made: list[str] = []
        try:
            targets = []
            for index, function in enumerate(self._source.functions):
                name = f"{self._prefix}-{index}"
                inits = [arrival[2] for arrival in self._workload if arrival[3] == index]
                function.init_ns = sum(inits) // len(inits) if inits else function.init_ns
                self._create(name, function)
                made.append(name)
                targets.append(self._ready(name, function))
            yield targets
        finally:
            for name in made:
                self._lambda.delete_function(FunctionName=name)

    def _given(self, name: str) -> Target:
        from lambent.plan.provisioning import Provisioning
        from lambent.plan.replay import Target

        plain, _, qualifier = name.partition(":")
        found = self._lambda.get_function_configuration(FunctionName=name)
        function = self._source.functions[0]
        function.memory_mib, function.timeout_ns = found["MemorySize"], found["Timeout"] * 1_000_000_000
        reserved = self._lambda.get_function_concurrency(FunctionName=plain)
        function.reserved = reserved.get("ReservedConcurrentExecutions")
        count = self._provisioned_of(plain, qualifier) if qualifier else 0
        function.provisioning = Provisioning(count) if count else None
        body = self._payload.encode()
        return Target(plain, qualifier or None, count > 0, lambda _: body, tail=True)

    def _provisioned_of(self, name: str, qualifier: str) -> int:
        from botocore.exceptions import ClientError

        try:
            found = self._lambda.get_provisioned_concurrency_config(FunctionName=name, Qualifier=qualifier)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("ProvisionedConcurrencyConfigNotFoundException",):
                return 0
            raise
        return int(found["RequestedProvisionedConcurrentExecutions"])

    def _create(self, name: str, function: PlannedFunction) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("m.py", _SLEEPER)
        self._lambda.create_function(
            FunctionName=name,
            Runtime=f"python3.{sys.version_info[1]}",
            Handler="m.handler",
            Role="arn:aws:iam::000000000000:role/lambda",
            Code={"ZipFile": buffer.getvalue()},
            MemorySize=function.memory_mib,
            Timeout=max(1, function.timeout_ns // 1_000_000_000),
            Environment={"Variables": {"REPLAY_INIT_S": str(function.init_ns / 1e9)}},
        )

    def _ready(self, name: str, function: PlannedFunction) -> Target:
        from lambent.plan.replay import Target

        self._wait(lambda: self._lambda.get_function_configuration(FunctionName=name)["State"] == "Active", name)
        if function.reserved is not None:
            self._lambda.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=function.reserved)
        count = function.provisioning.count if function.provisioning is not None else None
        if not count:
            return Target(name)
        version = self._lambda.publish_version(FunctionName=name)["Version"]
        of_version = {"FunctionName": name, "Qualifier": version}
        self._lambda.put_provisioned_concurrency_config(**of_version, ProvisionedConcurrentExecutions=count)
        self._wait(
            lambda: self._lambda.get_provisioned_concurrency_config(**of_version)["Status"] == "READY",
            f"the provisioned concurrency of {name}",
        )
        return Target(name, version, provisioned=True)

    @staticmethod
    def _wait(condition: Any, what: str) -> None:
        from lambent.plan.workload import WorkloadError

        end_s = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > end_s:
                raise WorkloadError(f"{what} is not ready after {_PATIENCE_S:g} s")
            time.sleep(0.05)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lambent.plan.replay import COMPARED, LATENCIES

    console = Console(highlight=False)
    planned, predicted, seen = result["planned"], result["predicted"], result["measured"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("planned", "with this machine's times", "measured", "difference"):
        table.add_column(heading, justify="right")
    for key in COMPARED:
        table.add_row(
            key.replace("_", " "),
            *(f"{column[key]:,}" for column in (planned, predicted, seen)),
            _percent(result["differences"][key]),
        )
    for reason in sorted({*predicted["throttles_by_reason"], *seen["throttles_by_reason"]}):
        counts = [column["throttles_by_reason"].get(reason, 0) for column in (planned, predicted, seen)]
        table.add_row(f"  {reason}", *(f"{count:,}" for count in counts), "")
    for key in LATENCIES:
        table.add_row(
            f"latency {key}",
            *(f"{column['latency_ms'][key]:,.4g} ms" for column in (planned, predicted, seen)),
            _percent(result["differences"][f"latency_{key}_ms"]),
        )
    console.print(f"{seen['invocations']:,} requests, {seen['errors']:,} errors.\n")
    console.print(table)
    console.print(
        f"\nLatencies count from the time at which a request should have gone out; 99 % went out within "
        f"{seen['late_p99_ms']:,.3g} ms of it."
    )


def _percent(difference: float | None) -> str:
    return "" if difference is None else f"{difference:+.1%}"

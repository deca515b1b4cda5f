"""The tour: starts a server, deploys the examples with boto3, and shows the defining behaviour of Lambda happening.

Each stop prints what AWS's clients see, with real REPORT lines, and makes claims; the table at the end compares every
claim with what was measured. Exit status 0 only if all hold.  `make demo`, or: python examples/demo.py [--json FILE]
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import stops
from botocore.config import Config
from bundle import bundle
from rich.console import Console
from rich.markup import escape
from rich.table import Table

EXAMPLES = Path(__file__).resolve().parent
ROLE = "arn:aws:iam::000000000000:role/demo"
RUNTIME = f"python3.{sys.version_info[1]}"
READY_TIMEOUT_S = 30


class Server:
    """`lambent up` on a free port with a data folder of its own."""

    def __init__(self, data: Path) -> None:
        started = time.monotonic()
        self.log = (data / "server.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lambent", "up", "--port", "0", "--data", str(data / "lambent")],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "Lambent ready on " not in line:
            self.process.wait(READY_TIMEOUT_S)
            sys.stderr.write((data / "server.log").read_text())
            raise SystemExit("the server did not start")
        self.ready_s = time.monotonic() - started
        self.url = line.rpartition(" ")[2].strip()

    def page(self, name: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/_lambent/{name}", timeout=10) as answer:
            return json.load(answer)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


class Tour:
    def __init__(self, server: Server, console: Console) -> None:
        self.server = server
        self.console = console
        self.examples = EXAMPLES
        #: By function: how many calls were answered, and how many throttled.
        self.calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._counting = threading.Lock()
        self.claims: list[tuple[str, str, bool]] = []
        options: dict[str, Any] = {
            "endpoint_url": server.url,
            "region_name": "us-east-1",
            "aws_access_key_id": "000000000000",
            "aws_secret_access_key": "demo",
        }
        config = Config(max_pool_connections=64, retries={"max_attempts": 0}, read_timeout=60)
        self.functions = boto3.client("lambda", config=config, **options)
        self.logs = boto3.client("logs", **options)
        self.metrics = boto3.client("cloudwatch", **options)

    # --- telling ----------------------------------------------------------------------------------------

    def stop(self, title: str) -> None:
        self.console.print(f"\n[bold cyan]{title}[/]")

    def line(self, text: str) -> None:
        self.console.print("  " + escape(text.rstrip().expandtabs(2)), highlight=False)

    def claim(self, text: str, measured: object, holds: bool) -> None:
        self.claims.append((text, str(measured), holds))
        self.console.print(
            f"  [{'green' if holds else 'bold red'}]{'✓' if holds else '✗'}[/] {escape(text)}: {measured}"
        )

    # --- doing ------------------------------------------------------------------------------------------

    def deploy(self, name: str, folder: str, **settings: Any) -> None:
        package = {"ZipFile": bundle(EXAMPLES / folder).read_bytes()}
        usual = {"Runtime": RUNTIME, "Handler": "app.handler", "Role": ROLE, "Code": package}
        self.functions.create_function(FunctionName=name, **{**usual, **settings})
        self.functions.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})

    def invoke(self, name: str, event: Any, qualifier: str = "$LATEST", raw: bool = False) -> dict[str, Any]:
        """The result (parsed, unless it is `raw`), the function error, and the lines of the log tail."""
        started = time.monotonic()
        try:
            answer = self.functions.invoke(
                FunctionName=name, Payload=json.dumps(event), LogType="Tail", Qualifier=qualifier
            )
        except self.functions.exceptions.TooManyRequestsException:
            self._count(name, "throttled")
            raise
        self._count(name, "ok")
        tail = base64.b64decode(answer["LogResult"]).decode()
        payload = answer["Payload"].read()
        return {
            "result": payload if raw else json.loads(payload),
            "error": answer.get("FunctionError"),
            "report": next((row for row in tail.splitlines() if row.startswith("REPORT")), ""),
            "tail": tail,
            "client_ms": (time.monotonic() - started) * 1000,
        }

    def _count(self, name: str, what: str) -> None:
        with self._counting:
            self.calls[name][what] += 1

    def until(self, condition: Callable[[], Any], patience_s: float) -> Any:
        """What `condition` gives once it is true, or at the end of the patience."""
        end = time.monotonic() + patience_s
        while not (found := condition()) and time.monotonic() < end:
            time.sleep(0.02)
        return found

    def messages(self, name: str, text: str) -> list[str]:
        """The function's log events that have this text in them."""
        events = self.logs.filter_log_events(logGroupName=f"/aws/lambda/{name}", filterPattern=f'"{text}"')["events"]
        return [event["message"] for event in events]

    def environments(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.server.page("environments") if row["function"] == name]


def cold_and_warm(tour: Tour) -> None:
    tour.stop("1. A cold start and a warm call")
    tour.deploy("hello", "hello")
    cold, warm = tour.invoke("hello", {"name": "cold"}), tour.invoke("hello", {"name": "warm"})
    for call in (cold, warm):
        tour.line(f"{call['result']}   {call['client_ms']:.1f} ms at the client")
        tour.line(call["report"])
    tour.claim("The cold call's REPORT has Init Duration", cold["report"].rpartition("\t")[0][-30:].strip(),
               "Init Duration" in cold["report"])  # fmt: skip
    tour.claim("The warm call's has not", "no Init Duration", "Init Duration" not in warm["report"])


def one_after_the_other(tour: Tour) -> None:
    tour.stop("2. Ten requests one after the other share an environment, and its module state")
    counts = [tour.invoke("hello", {})["result"]["count"] for _ in range(10)]
    alive = tour.environments("hello")
    tour.line(f"count, kept in the module: {counts}")
    tour.claim("Ten requests in turn need 1 environment", f"{len(alive)} with {alive[0]['invocations']} invocations",
               len(alive) == 1)  # fmt: skip
    tour.claim("Module state is kept between calls", f"{counts[0]} … {counts[-1]}", counts == list(range(3, 13)))


def ten_at_once(tour: Tour) -> None:
    tour.stop("3. Ten requests at once need ten environments")
    tour.deploy("sleeper", "sleeper", Timeout=10)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        calls = list(pool.map(lambda _: tour.invoke("sleeper", {"seconds": 0.7}), range(10)))
    used = {call["result"]["environment"] for call in calls}
    cold = sum("Init Duration" in call["report"] for call in calls)
    tour.line(calls[0]["report"])
    tour.claim(
        "Ten at once run in 10 environments", f"{len(used)} environments, {cold} cold starts", len(used) == cold == 10
    )
    tour.line("again, now that ten are idle:")
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        calls = list(pool.map(lambda _: tour.invoke("sleeper", {"seconds": 0.3}), range(10)))
    cold = sum("Init Duration" in call["report"] for call in calls)
    tour.claim("Idle environments are reused", f"{cold} cold starts", cold == 0)


def twenty_a_second(tour: Tour) -> None:
    tour.stop("4. Concurrency = requests a second x seconds each: 20 x 0.1 = 2")
    tour.deploy("paced", "sleeper")
    rate, seconds, each_s = 20, 6, 0.09  # with what the platform and this loop add, at most 0.1 s
    calls: list[dict[str, Any]] = []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        begin = time.monotonic() + 0.2
        futures = []
        for number in range(rate * seconds):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))  # open loop: arrivals do not wait
            futures.append(pool.submit(tour.invoke, "paced", {"seconds": each_s}))
        calls = [future.result() for future in futures]
    settled = calls[len(calls) // 2 :]
    used = Counter(call["result"]["environment"] for call in settled)
    regular = [name for name, count in used.items() if count > len(settled) * 0.05]
    busy_s = sum(float(call["report"].split("Duration: ")[1].split(" ms")[0]) / 1000 for call in settled)
    mean = busy_s / (len(settled) / rate)
    tour.line(f"requests by environment, second half: {sorted(used.values(), reverse=True)}; mean busy: {mean:.2f}")
    tour.claim("20 requests/s of 0.1 s settle at 2 environments", f"{len(regular)} (mean concurrency {mean:.2f})",
               len(regular) == 2)  # fmt: skip


def faults(tour: Tour) -> None:
    tour.stop("5. What goes wrong, in AWS's words")
    tour.deploy("faulty", "faulty", Timeout=1, MemorySize=128)
    raised = tour.invoke("faulty", {"fault": "raise"})
    tour.line(json.dumps(raised["result"])[:160])
    tour.claim("An exception is a function error", f"{raised['error']}, {raised['result']['errorType']}",
               raised["error"] == "Unhandled" and raised["result"]["errorType"] == "OrderRefused")  # fmt: skip
    late = tour.invoke("faulty", {"fault": "timeout"})
    tour.line(late["report"])
    tour.claim("A timeout ends at the limit", late["result"]["errorMessage"].partition("Error: ")[2],
               late["result"]["errorType"] == "Sandbox.Timedout" and "Status: timeout" in late["report"])  # fmt: skip
    large = tour.invoke("faulty", {"fault": "memory"})
    tour.line(large["report"])
    tour.claim("A memory overrun is killed", large["result"]["errorType"],
               large["result"]["errorType"] == "Runtime.OutOfMemory")  # fmt: skip
    gone = tour.invoke("faulty", {"fault": "exit", "code": 3})
    tour.line(json.dumps(gone["result"]))
    tour.claim("An exit is told", gone["result"]["errorMessage"].partition("Error: ")[2],
               gone["result"]["errorMessage"].endswith("exit status 3"))  # fmt: skip
    healthy = tour.invoke("faulty", {})
    alive = tour.environments("faulty")
    tour.claim("The same environment goes on after all of it", f"{len(alive)} environment, survived: "
               f"{healthy['result'].get('survived')}", len(alive) == 1 and healthy["error"] is None)  # fmt: skip


def reserved(tour: Tour) -> None:
    tour.stop("6. Reserved concurrency is a ceiling")
    tour.functions.put_function_concurrency(FunctionName="sleeper", ReservedConcurrentExecutions=2)

    def attempt(_: int) -> str:
        try:
            tour.invoke("sleeper", {"seconds": 0.5})
            return "ok"
        except tour.functions.exceptions.TooManyRequestsException as error:
            return str(error.response["Reason"])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = Counter(pool.map(attempt, range(4)))
    tour.functions.delete_function_concurrency(FunctionName="sleeper")
    tour.line(str(dict(answers)))
    reason = "ReservedFunctionConcurrentInvocationLimitExceeded"
    tour.claim("Of 4 at once with 2 reserved, 2 are throttled with the right Reason", f"{answers[reason]} x {reason}",
               answers == {"ok": 2, reason: 2})  # fmt: skip


def a_real_api(tour: Tour) -> None:
    tour.stop("7. A function as people write them: Powertools, an API Gateway event, structured logs")
    tour.console.print("  bundling aws-lambda-powertools from PyPI …", style="dim")
    tour.deploy("api", "api_powertools", MemorySize=256, Timeout=10)
    event = json.loads((EXAMPLES / "api_powertools" / "event.json").read_text())
    call = tour.invoke("api", event)
    tour.line(call["report"])
    tour.line(json.dumps(call["result"])[:200])
    records = [json.loads(row) for row in call["tail"].splitlines() if row.startswith("{")]
    structured = [record for record in records if "function_request_id" in record or "level" in record]
    for record in structured[:2]:
        tour.line(json.dumps(record)[:200])
    tour.claim("The API answers", f"status {call['result'].get('statusCode')}", call["result"].get("statusCode") == 200)
    tour.claim("Its log is structured", f"{len(structured)} JSON records", len(structured) > 0)


def following_logs(tour: Tour) -> None:
    tour.stop("14. Logs, while they are written")
    command = [
        sys.executable,
        "-m",
        "lambent",
        "logs",
        "hello",
        "--follow",
        "--since",
        "30s",
        "--endpoint",
        tour.server.url,
    ]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    answer = tour.functions.invoke(FunctionName="hello", Payload=b"{}")
    request_id = answer["ResponseMetadata"]["RequestId"]
    asked = time.monotonic()
    assert follower.stdout is not None
    seen: list[str] = []
    while time.monotonic() < asked + 15:
        row = follower.stdout.readline()
        if request_id in row:
            seen.append(row)
        if seen and "REPORT" in seen[-1]:
            break
    follower.terminate()
    for row in seen:
        tour.line(row)
    tour.claim("`lambent logs --follow` shows START, END and REPORT", f"{len(seen)} lines", len(seen) == 3)
    streams = tour.logs.describe_log_streams(logGroupName="/aws/lambda/sleeper")["logStreams"]
    tour.line(streams[0]["logStreamName"])
    tour.claim("One log stream an environment (CloudWatch Logs API)", f"{len(streams)} streams", len(streams) == 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the claims to this file too")
    options = parser.parse_args()
    console = Console()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lambent-demo-") as folder:
        os.chmod(folder, 0o755)  # the server gives up root and must reach its data
        server = Server(Path(folder))
        health = server.page("health")
        console.print(
            f"[bold]Lambent ready on {server.url}[/] after {server.ready_s:.2f} s; sandbox: {health['sandbox']}"
        )
        for problem in health["problems"]:
            console.print(f"  [yellow]note:[/] {escape(problem)}", highlight=False)
        tour = Tour(server, console)
        try:
            for stop in (cold_and_warm, one_after_the_other, ten_at_once, twenty_a_second, faults, reserved, a_real_api,
                         *stops.STOPS, following_logs):  # fmt: skip
                stop(tour)
        finally:
            status = server.stop()
        tour.stop("15. The end")
        tour.claim("SIGTERM drains and exits", f"status {status}", status == 0)
    table = Table(title="Claims and what was measured", title_justify="left")
    table.add_column("")
    table.add_column("claim")
    table.add_column("measured")
    for text, measured, holds in tour.claims:
        table.add_row("[green]✓[/]" if holds else "[bold red]✗[/]", escape(text), escape(measured))
    console.print()
    console.print(table)
    failed = [text for text, _, holds in tour.claims if not holds]
    console.print(
        f"{len(tour.claims) - len(failed)} of {len(tour.claims)} claims hold; {time.monotonic() - began:.0f} s"
    )
    if options.json:
        options.json.write_text(
            json.dumps([{"claim": t, "measured": m, "holds": h} for t, m, h in tour.claims], indent=2)
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

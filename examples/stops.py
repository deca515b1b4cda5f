"""More stops of the tour: other runtimes and ways to call, layers and extensions, metrics, provisioned concurrency, and
what connecting outside the handler is worth. demo.py calls them with its `Tour`."""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import math
import shutil
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

from bundle import bundle
from postgres import Postgres, PostgresUnavailable
from rich.table import Table

if TYPE_CHECKING:
    from demo import Tour

PROVISIONED = 3


def node_and_a_url(tour: Tour) -> None:
    tour.stop("8. Node.js, and a function URL")
    if shutil.which("node") is None:
        tour.line("no Node.js on this machine: that claim is left out")
    else:
        tour.deploy("prices", "nodejs_prices", Runtime="nodejs20.x", Handler="index.handler")
        cold, warm = tour.invoke("prices", {"net": 10}), tour.invoke("prices", {"net": 20})
        tour.line(f"{warm['result']}   {warm['client_ms']:.1f} ms at the client")
        tour.line(cold["report"])
        results = cold["result"], warm["result"]
        tour.claim("A Node.js function answers, cold and warm", " and ".join(str(each["gross"]) for each in results),
                   [(each["gross"], each["count"]) for each in results] == [(11.9, 1), (23.8, 2)])  # fmt: skip
    url = tour.functions.create_function_url_config(FunctionName="hello", AuthType="NONE")["FunctionUrl"]
    for statement, permission in (
        ("url", {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"}),
        ("invoke", {"Action": "lambda:InvokeFunction", "InvokedViaFunctionUrl": True}),
    ):
        tour.functions.add_permission(FunctionName="hello", StatementId=statement, Principal="*", **permission)
    status, body = fetch(tour, url)
    tour.line(f"GET {url} → {status} {body[:100]}")
    tour.claim("A function URL answers a web client", f"{status}, {body[:60]}",
               status == 200 and json.loads(body)["greeting"].startswith("Hello"))  # fmt: skip


def fetch(tour: Tour, url: str) -> tuple[int, str]:
    """With urllib. Not every resolver knows names below .localhost, so the name goes in the Host header."""
    host = url.split("/")[2]
    request = urllib.request.Request(tour.server.url + "/", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.read().decode()


def streamed(tour: Tour) -> None:
    tour.stop("9. A streamed answer is read while the function runs (here a custom runtime)")
    tour.deploy("streamed", "streamed", Runtime="provided.al2023", Handler="unused")
    tour.invoke("streamed", {"pieces": 1, "seconds": 0}, raw=True)  # the cold start is another stop's subject
    began = time.monotonic()
    answer = tour.functions.invoke_with_response_stream(
        FunctionName="streamed", Payload=json.dumps({"pieces": 4, "seconds": 0.2})
    )
    arrived = [time.monotonic() - began for event in answer["EventStream"] if "PayloadChunk" in event]
    whole = time.monotonic() - began
    tour.line(
        "pieces after " + ", ".join(f"{each * 1000:.0f}" for each in arrived) + f" ms; end after {whole * 1000:.0f} ms"
    )
    tour.claim("The first piece arrives long before the last", f"{arrived[0] * 1000:.0f} ms of {whole * 1000:.0f} ms",
               len(arrived) == 4 and arrived[0] < whole / 3 and whole > 0.8)  # fmt: skip


def layer_and_extension(tour: Tour) -> None:
    tour.stop("10. A layer with an extension: told of each invocation, frozen in between")
    layer = tour.functions.publish_layer_version(
        LayerName="told", Content={"ZipFile": bundle(tour.examples / "told_layer").read_bytes()}
    )["LayerVersionArn"]
    tour.deploy("watched", "watched", Layers=[layer], Timeout=10)
    tour.claim("A layer's library is imported", "import ticks", tour.invoke("watched", {})["error"] is None)
    running = tour.invoke("watched", {"seconds": 0.8})["result"]
    frozen = tour.until(lambda: all(row["frozen"] for row in tour.environments("watched")), 5)
    time.sleep(0.8)  # the time in which it could tick
    after = tour.invoke("watched", {})["result"]
    in_it, between = running["after"] - running["before"], after["before"] - running["after"]
    tour.line(f"the extension's thread counted {in_it} in an invocation of 0.8 s, and {between} in the 0.8 s after it")
    told = tour.until(lambda: tour.messages("watched", "told of INVOKE"), 10)
    tour.claim("The extension was told of every invocation", f"{len(told)} x INVOKE", len(told) == 3)
    tour.claim("Between invocations it is frozen", f"{between} ticks against {in_it}",
               bool(frozen) and between < in_it / 4)  # fmt: skip


def metrics(tour: Tour) -> None:
    tour.stop("11. CloudWatch metrics, read back")
    now = datetime.datetime.now(datetime.UTC)
    span = {"Namespace": "AWS/Lambda", "StartTime": now - datetime.timedelta(minutes=30),
            "EndTime": now + datetime.timedelta(minutes=1), "Period": 3600,
            "Dimensions": [{"Name": "FunctionName", "Value": "sleeper"}]}  # fmt: skip

    def read(name: str, **what: Any) -> dict[str, Any]:
        points = tour.metrics.get_metric_statistics(MetricName=name, **span, **what)["Datapoints"]
        total = Counter({"Sum": 0.0})
        for point in points:  # the hour may have turned
            total["Sum"] += point.get("Sum", 0)
            total["Maximum"] = max(total["Maximum"], point.get("Maximum", 0))
            total.update(point.get("ExtendedStatistics", {}))
        return total

    counted, refused = read("Invocations", Statistics=["Sum"])["Sum"], read("Throttles", Statistics=["Sum"])["Sum"]
    peak = read("ConcurrentExecutions", Statistics=["Maximum"])["Maximum"]
    p99 = read("Duration", ExtendedStatistics=["p99"])["p99"]
    tour.line(f"sleeper: {counted:.0f} Invocations, {refused:.0f} Throttles, ConcurrentExecutions up to {peak:.0f}, "
              f"Duration p99 {p99:.0f} ms")  # fmt: skip
    calls = tour.calls["sleeper"]
    tour.claim("Invocations and Throttles are what was called", f"{counted:.0f} and {refused:.0f}",
               (counted, refused) == (calls["ok"], calls["throttled"]))  # fmt: skip
    tour.claim("ConcurrentExecutions saw ten at once", f"{peak:.0f}", peak == 10)


def provisioned(tour: Tour) -> None:
    tour.stop("12. Provisioned concurrency: environments that wait for the first request")
    tour.deploy("ready", "sleeper")
    version = tour.functions.publish_version(FunctionName="ready")["Version"]
    tour.functions.put_provisioned_concurrency_config(
        FunctionName="ready", Qualifier=version, ProvisionedConcurrentExecutions=PROVISIONED
    )
    ready = tour.until(
        lambda: (
            tour.functions.get_provisioned_concurrency_config(FunctionName="ready", Qualifier=version)["Status"]
            == "READY"
        ),
        20,
    )
    with concurrent.futures.ThreadPoolExecutor(PROVISIONED + 1) as pool:
        calls = list(
            pool.map(lambda _: tour.invoke("ready", {"seconds": 0.5}, qualifier=version), range(PROVISIONED + 1))
        )
    cold = sum("Init Duration" in call["report"] for call in calls)
    tour.line(f"{PROVISIONED} provisioned, {PROVISIONED + 1} requests at once: {cold} cold start")
    tour.claim(f"{PROVISIONED} of {PROVISIONED + 1} first requests need no cold start", f"{cold} cold start",
               bool(ready) and cold == 1)  # fmt: skip


# --- connections --------------------------------------------------------------------------------------------


def connections(tour: Tour) -> None:
    tour.stop("13. Connections outside the handler: the same function twice, with a real PostgreSQL")
    try:
        postgres = Postgres()
    except PostgresUnavailable as error:
        tour.claim("PostgreSQL runs", str(error), False)
        return
    try:
        tour.line(f"PostgreSQL {postgres.version} on port {postgres.port}; it counts its connections itself")
        rows = {name: _database_run(tour, postgres, name) for name in ("as_is", "to_be")}
        _show_connections(tour, rows)
        for name in rows:
            tour.functions.delete_function(FunctionName=name)
        gone = tour.until(lambda: not any(postgres.connected(name) for name in rows), 10)
        tour.claim("Environments that end close their connections", "0 left", bool(gone))
    finally:
        postgres.stop()


def _database_run(tour: Tour, postgres: Postgres, name: str) -> dict[str, Any]:
    """One environment, then 20 at once."""
    tour.deploy(name, "database", Handler=f"{name}.handler", Timeout=20, MemorySize=256,
                Environment={"Variables": {"DATABASE_URL": postgres.url(name)}})  # fmt: skip
    tour.invoke(name, {"id": 1})
    began = postgres.opened(name)
    one = [duration_ms(tour.invoke(name, {"id": number})) for number in range(1, 51)]
    opened_one = postgres.opened(name) - began
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        held = list(pool.map(lambda number: tour.invoke(name, {"id": number, "seconds": 2}), range(1, 21)))
        began = postgres.opened(name)
        many = list(pool.map(lambda number: tour.invoke(name, {"id": number}), range(1, 201)))
    environments = {call["result"]["environment"] for call in (*held, *many)}
    idle = 0 if name == "as_is" else len(environments)
    tour.until(lambda: postgres.connected(name) == idle, 5)
    return {
        "one": one,
        "opened_one": opened_one,
        "many": [duration_ms(call) for call in many],
        "opened_many": postgres.opened(name) - began,
        "opened": postgres.opened(name),
        "environments": len(environments),
        "idle": postgres.connected(name),
        "requests": tour.calls[name]["ok"],
    }


def _show_connections(tour: Tour, rows: dict[str, dict[str, Any]]) -> None:
    as_is, to_be = rows["as_is"], rows["to_be"]
    table = Table(
        title="Duration of the invocation (REPORT), connections as PostgreSQL counts them", title_justify="left"
    )
    for heading in ("", "AS IS: connect in the handler", "TO BE: connect at init"):
        table.add_column(heading, justify="left" if not heading else "right")

    def times(row: dict[str, Any], key: str) -> str:
        return f"p50 {percentile(row[key], 50):.2f} ms   p99 {percentile(row[key], 99):.2f} ms"

    table.add_row("1 environment, 50 requests", times(as_is, "one"), times(to_be, "one"))
    table.add_row("  new connections for these", str(as_is["opened_one"]), str(to_be["opened_one"]))
    table.add_row(f"{to_be['environments']} environments, 200 requests", times(as_is, "many"), times(to_be, "many"))
    table.add_row("  new connections for these", str(as_is["opened_many"]), str(to_be["opened_many"]))
    table.add_row(f"all connections, for {as_is['requests']} requests", str(as_is["opened"]), str(to_be["opened"]))
    table.add_row("still open when idle", str(as_is["idle"]), str(to_be["idle"]))
    tour.console.print(table)
    ratio = percentile(as_is["one"], 50) / percentile(to_be["one"], 50)
    tour.claim("AS IS: as many connections as requests", f"{as_is['opened']} of {as_is['requests']}",
               as_is["opened"] == as_is["requests"])  # fmt: skip
    tour.claim("TO BE: as many connections as environments", f"{to_be['opened']} of {to_be['environments']}",
               to_be["opened"] == to_be["environments"] == to_be["idle"])  # fmt: skip
    tour.claim("Warm, TO BE takes less than half the time", f"1/{ratio:.1f} at p50", ratio > 2)


def duration_ms(call: dict[str, Any]) -> float:
    """The field Duration of the REPORT line: what the handler took."""
    return float(call["report"].split("Duration: ")[1].split(" ms")[0])


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


STOPS = (node_and_a_url, streamed, layer_and_extension, metrics, provisioned, connections)

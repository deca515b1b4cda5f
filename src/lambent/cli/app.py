"""Commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lambent import __version__
from lambent.cli.planning import plan
from lambent.cli.replaying import replay

app = typer.Typer(
    name="lambent",
    help="AWS Lambda as software that you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Endpoint = Annotated[str, typer.Option("--endpoint", envvar="LAMBENT_ENDPOINT", help="Where the server listens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DEFAULT_ENDPOINT = "http://127.0.0.1:9400"


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lambent {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version


@app.command()
def up(
    host: Annotated[str, typer.Option(envvar="LAMBENT_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="LAMBENT_PORT", help="Port; 0 takes a free one.", min=0, max=65535)
    ] = 9400,
    data: Annotated[Path | None, typer.Option(envvar="LAMBENT_DATA", help="Folder for state, code and logs.")] = None,
    sandbox: Annotated[str, typer.Option(envvar="LAMBENT_SANDBOX", help="auto, process, namespace or oci.")] = "auto",
    profile: Annotated[
        str, typer.Option(envvar="LAMBENT_PROFILE", help="Scaling rate: current or classic.")
    ] = "current",
    account_concurrency: Annotated[
        int,
        typer.Option(envvar="LAMBENT_ACCOUNT_CONCURRENCY", help="Concurrent executions per account.", min=100),
    ] = 1_000,
    upstream: Annotated[
        str | None,
        typer.Option(envvar="LAMBENT_UPSTREAM", help="Endpoint for services that Lambent does not have."),
    ] = None,
    url_domain: Annotated[
        str,
        typer.Option(
            envvar="LAMBENT_URL_DOMAIN",
            help="Domain of function URLs; https://DOMAIN when a proxy in front of the server speaks TLS.",
        ),
    ] = "localhost",
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="LAMBENT_INSECURE", help="Allow a non-loopback --host without --auth."),
    ] = False,
    strict_runtimes: Annotated[
        bool,
        typer.Option("--strict-runtimes", envvar="LAMBENT_STRICT_RUNTIMES", help="Refuse runtimes not installed here."),
    ] = False,
    cpu: Annotated[
        str,
        typer.Option(
            envvar="LAMBENT_CPU",
            help="share: CPU by memory under contention; quota: never more than AWS gives.",
        ),
    ] = "share",
    freeze: Annotated[
        bool,
        typer.Option(
            "--freeze/--no-freeze",
            envvar="LAMBENT_FREEZE",
            help="Freeze environments between invocations, as Lambda does.",
        ),
    ] = True,
    idle_seconds: Annotated[
        float, typer.Option(envvar="LAMBENT_IDLE_SECONDS", help="Idle environments end after this.", min=0.1)
    ] = 600,
    drain_seconds: Annotated[
        float,
        typer.Option(envvar="LAMBENT_DRAIN_SECONDS", help="Time for running requests at the end.", min=0),
    ] = 30,
    parked: Annotated[
        int, typer.Option(envvar="LAMBENT_PARKED", help="Sandboxes made ahead, per runtime.", min=0, max=256)
    ] = 8,
    memory_overcommit: Annotated[
        float,
        typer.Option(envvar="LAMBENT_MEMORY_OVERCOMMIT", help="Sum of MemorySize over the machine's memory.", min=0.1),
    ] = 8.0,
    log_retention_mib: Annotated[
        int,
        typer.Option(envvar="LAMBENT_LOG_RETENTION_MIB", help="Disk for logs; the oldest go first.", min=16),
    ] = 1_024,
    record: Annotated[
        Path | None,
        typer.Option(envvar="LAMBENT_RECORD", help="Write the scheduler's facts and commands to this file."),
    ] = None,
    image_dir: Annotated[
        list[Path] | None,
        typer.Option(envvar="LAMBENT_IMAGE_DIR", help="Folder whose container images ImageUri may name; repeatable."),
    ] = None,
    docker_config: Annotated[
        Path | None,
        typer.Option(envvar="LAMBENT_DOCKER_CONFIG", help="Docker's config.json with the credentials of registries."),
    ] = None,
) -> None:
    """Start the server in the foreground."""
    from lambent.server.run import CanNotStart, serve
    from lambent.server.settings import CpuLimit, Profile, SandboxChoice, Settings, default_data_dir

    try:
        settings = Settings(
            host=host,
            port=port,
            data_dir=(data or default_data_dir()).absolute(),
            sandbox=SandboxChoice(sandbox),
            profile=Profile(profile),
            account_concurrency=account_concurrency,
            upstream=upstream,
            url_domain=url_domain,
            insecure=insecure,
            strict_runtimes=strict_runtimes,
            cpu=CpuLimit(cpu),
            freeze=freeze,
            idle_s=idle_seconds,
            drain_s=drain_seconds,
            parked=parked,
            memory_overcommit=memory_overcommit,
            log_retention_mib=log_retention_mib,
            record=record.absolute() if record else None,
            image_dirs=tuple(folder.absolute() for folder in image_dir or ()),
            docker_config=docker_config.absolute() if docker_config else None,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        raise typer.Exit(serve(settings))
    except CanNotStart as error:
        typer.echo(f"lambent: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
def deploy(
    path: Annotated[Path, typer.Argument(help="A folder, a zip, or one file of Python or JavaScript.", exists=True)],
    name: Annotated[str | None, typer.Option(help="Function name; default: of the path.")] = None,
    handler: Annotated[str | None, typer.Option(help="module.function; default: found in the code.")] = None,
    runtime: Annotated[str | None, typer.Option(help="For example nodejs20.x; default: found from the code.")] = None,
    memory: Annotated[int | None, typer.Option(help="MemorySize in MB.")] = None,
    timeout: Annotated[int | None, typer.Option(help="Timeout in seconds.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeat it.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="ARN of a layer version; repeat it.")] = None,
    install: Annotated[bool, typer.Option("--install", help="Bundle what requirements.txt names, with pip.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: AsJson = False,
) -> None:
    """Create a function, or update it, from code on this machine."""
    from lambent.cli import deploying

    deploying.deploy(endpoint, path, name, handler, runtime, memory, timeout, env or [], layer or [], install, as_json)


@app.command()
def invoke(
    name: Annotated[str, typer.Argument(help="Name or ARN; name:qualifier for a version or alias.")],
    payload: Annotated[str | None, typer.Option(help="JSON; @FILE reads a file, - standard input.")] = None,
    asynchronous: Annotated[bool, typer.Option("--async", help="InvocationType Event: do not wait.")] = False,
    tail: Annotated[bool, typer.Option("--tail", help="Show the log lines of this invocation.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: AsJson = False,
) -> None:
    """Call a function and print what it returns."""
    from lambent.cli import invoking

    invoking.invoke(endpoint, name, payload, asynchronous, tail, as_json)


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="Function name, or a log group that begins with /.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing what comes.")] = False,
    since: Annotated[str, typer.Option(help="How far back: 30s, 10m, 2h, 1d.")] = "10m",
    pattern: Annotated[str | None, typer.Option("--filter", help="CloudWatch Logs filter pattern.")] = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: AsJson = False,
) -> None:
    """Print a function's logs."""
    from lambent.cli import invoking

    invoking.logs(endpoint, name, follow, since, pattern, as_json)


@app.command()
def functions(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: AsJson = False) -> None:
    """List functions."""
    from lambent.cli import listing

    listing.functions(endpoint, as_json)


@app.command()
def environments(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: AsJson = False) -> None:
    """List execution environments: id, version, state, age, invocations."""
    from lambent.cli import listing

    listing.environments(endpoint, as_json)


@app.command()
def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1, max=3_600)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end; works in a pipe.")] = False,
    function: Annotated[str | None, typer.Option(help="Only functions whose name has this in it; * and ? too.")] = None,
    sort: Annotated[str, typer.Option(help="concurrency, requests, p99, errors or name.")] = "concurrency",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: AsJson = False,
) -> None:
    """Watch concurrency, environments, requests and latency, live; q quits."""
    from lambent.cli import top as watching

    raise typer.Exit(watching.top(endpoint, interval, once, function, sort, as_json))


app.command()(plan)
app.command()(replay)


@app.command()
def dev(
    path: Annotated[Path, typer.Argument(help="A folder, a zip, or one file of Python or JavaScript.", exists=True)],
    name: Annotated[str | None, typer.Option(help="Function name; default: of the path.")] = None,
    handler: Annotated[str | None, typer.Option(help="module.function; default: found in the code.")] = None,
    runtime: Annotated[str | None, typer.Option(help="For example nodejs20.x; default: found from the code.")] = None,
    memory: Annotated[int | None, typer.Option(help="MemorySize in MB.")] = None,
    timeout: Annotated[int | None, typer.Option(help="Timeout in seconds.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeat it.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="ARN of a layer version; repeat it.")] = None,
    url: Annotated[bool, typer.Option("--url", help="Give the function a URL.")] = False,
    event: Annotated[
        Path | None, typer.Option("--invoke", help="Invoke with this JSON file after every deployment.", exists=True)
    ] = None,
    debug_port: Annotated[
        int | None, typer.Option(help="Port for a debugger: debugpy or Node.js inspector.", min=1, max=65535)
    ] = None,
    wait_for_debugger: Annotated[
        bool, typer.Option("--wait-for-debugger", help="Init waits until a debugger has attached.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the function there at the end.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: AsJson = False,
) -> None:
    """Deploy code, and deploy it again whenever it is saved; print the function's log."""
    from lambent.cli import developing

    if wait_for_debugger and debug_port is None:
        raise typer.BadParameter("--wait-for-debugger needs --debug-port")
    developing.develop(
        developing.Options(
            path, name, handler, runtime, memory, timeout, env or [], layer or [], endpoint, url, event, keep,
            debug_port, wait_for_debugger, as_json,
        )
    )  # fmt: skip


@app.command()
def doctor(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: AsJson = False) -> None:
    """Say what this machine allows, and what to do about what is missing."""
    from lambent.cli import doctoring

    raise typer.Exit(doctoring.doctor(endpoint, as_json))

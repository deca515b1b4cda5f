"""The SDK clients of the everyday commands, and how their errors are told."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import typer


def client(service: str, endpoint: str, read_timeout_s: int = 960) -> Any:
    """A boto3 client on this server. The environment's credentials and region are used when there are any."""
    import boto3
    import botocore.config
    import botocore.session

    session = botocore.session.get_session()
    known = session.get_credentials() is not None
    region = session.get_config_variable("region") or "us-east-1"
    extra = {} if known else {"aws_access_key_id": "000000000000", "aws_secret_access_key": "lambent"}
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        config=botocore.config.Config(read_timeout=read_timeout_s, retries={"max_attempts": 0}),
        **extra,
    )


@contextlib.contextmanager
def told_errors(endpoint: str) -> Iterator[None]:
    """Errors of the server, and of reaching it, in one line; exit status 1."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        detail = error.response.get("Error", {})
        reason = error.response.get("Reason")
        typer.echo(
            f"lambent: {detail.get('Code')}: {detail.get('Message')}" + (f" ({reason})" if reason else ""),
            err=True,
        )
        raise typer.Exit(1) from error
    except BotoCoreError as error:
        if "Could not connect" in str(error):
            raise unreachable(endpoint) from error
        typer.echo(f"lambent: {error}", err=True)
        raise typer.Exit(1) from error


def unreachable(endpoint: str) -> typer.Exit:
    typer.echo(
        f"lambent: no server answers at {endpoint}. Start one with `lambent up`, or give --endpoint.",
        err=True,
    )
    return typer.Exit(1)


def own_page(endpoint: str, page: str) -> Any:
    """One of Lambent's own JSON pages."""
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/_lambent/{page}", timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError) as error:
        raise unreachable(endpoint) from error


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")

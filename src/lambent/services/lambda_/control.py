"""What all handlers of the Lambda API share: the store, the data plane, the settings, one lock per function.

Per-function order: whoever changes a function holds `exclusive(key)` from the first look at it until the data
plane has been told, so the data plane hears of changes in the order of their commits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from lambent.model import limits
from lambent.model.errors import AccessDenied
from lambent.model.function_url import DEFAULT_URL_BASE, UrlBase
from lambent.model.names import LATEST, FunctionKey, FunctionRef, parse_function_ref
from lambent.services.base import CallContext
from lambent.services.lambda_.messages import function_not_found, functions_only
from lambent.services.lambda_.ports import Deployments
from lambent.store.code import CodeStore
from lambent.store.database import Database
from lambent.store.functions import FunctionRows
from lambent.store.records import VersionRecord, ordinal_of

T = TypeVar("T")


class UpstreamCredentials(NamedTuple):
    """Who we are to `--upstream`."""

    access_key_id: str = "000000000000"
    secret_access_key: str = "lambent"
    session_token: str | None = None


_ANYBODY = UpstreamCredentials()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LambdaSettings:
    """What the composition root decides for the Lambda API."""

    account_concurrency: int = limits.ACCOUNT_CONCURRENCY_DEFAULT
    #: Where S3 is, for code that is named by bucket and key: a URL, or None.
    upstream: str | None = None
    upstream_credentials: UpstreamCredentials = _ANYBODY
    #: Where function URLs lie.
    url_base: UrlBase = DEFAULT_URL_BASE
    #: For tests: the wall clock.
    now_ns: Callable[[], int] = time.time_ns


class Control:
    """The room that the handlers of the Lambda API work in."""

    def __init__(self, database: Database, code: CodeStore, deployments: Deployments, settings: LambdaSettings) -> None:
        self.code = code
        self.deployments = deployments
        self.settings = settings
        self._database = database
        self._locks: weakref.WeakValueDictionary[FunctionKey, asyncio.Lock] = weakref.WeakValueDictionary()

    async def rows(self, work: Callable[[FunctionRows], T]) -> T:
        """Run `work` on the function tables in one transaction."""
        return await self._database.run(lambda connection: work(FunctionRows(connection)))

    def exclusive(self, key: FunctionKey) -> asyncio.Lock:
        """The lock under which a function is changed; gone when nobody holds or awaits it."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def timestamp(self) -> str:
        """Now, as LastModified is written."""
        milliseconds = self.settings.now_ns() // limits.NS_PER_MS
        seconds, rest = divmod(milliseconds, 1_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03}+0000"

    def new_revision(self) -> str:
        return str(uuid.uuid4())

    def named(self, context: CallContext, params: dict[str, Any], operation: str) -> FunctionRef:
        """The function, and perhaps the version or alias, that a request is about."""
        ref = parse_function_ref(params["FunctionName"], params.get("Qualifier"), context.account, context.region)
        if ref.key.account != context.account:
            raise AccessDenied(
                f"User: arn:aws:iam::{context.account}:root is not authorized to perform: "
                f"lambda:{operation} on resource: {ref.arn} because no resource-based policy allows the "
                f"lambda:{operation} action"
            )
        return ref

    def named_function(self, context: CallContext, params: dict[str, Any], operation: str) -> FunctionKey:
        """As `named`, for operations that are about the whole function."""
        ref = self.named(context, params, operation)
        if ref.qualifier is not None:
            raise functions_only()
        return ref.key


class Resolved(NamedTuple):
    """A version found by a name, and the ARN under which it was asked for."""

    record: VersionRecord
    arn: str


def resolve(rows: FunctionRows, ref: FunctionRef) -> Resolved:
    """The version that a name leads to, through an alias if it is one. Raises ResourceNotFound."""
    version = ref.qualifier or LATEST
    if ordinal_of(version) < 0:
        alias = rows.alias(ref.key, version)
        if alias is None:
            raise function_not_found(ref.arn)
        version = alias.version
    record = rows.version(ref.key, version)
    if record is None:
        raise function_not_found(ref.arn)
    return Resolved(record, ref.arn)

"""Function URLs: an HTTP address of its own for a function, or for one of its aliases.

What the data plane is told of a URL includes what the function's resource policy allows, so it is told again when a
policy changes or goes with its alias (`retelling`). Deleting an alias leaves its URL, which then answers 403.
"""

from __future__ import annotations

import functools
import secrets
import string
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from lambent.model.errors import ResourceConflict, ResourceNotFound
from lambent.model.function_url import Cors, InvokeMode, UrlAuthType, UrlSpec
from lambent.model.names import LATEST, FunctionRef, parse_function_ref
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import paging, policies, policy_rules
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import broken_constraint, not_per_tenant
from lambent.store.functions import FunctionRows
from lambent.store.records import PolicyRecord, UrlRecord

_ID_ALPHABET = string.ascii_lowercase + string.digits
_ID_CHARS = 32
_QUALIFIER_PATTERN = r"((?!^\d+$)^[0-9a-zA-Z-_]+$)"
_PERMITS_CACHE = 64
_CORS_MEMBERS = {
    "AllowCredentials": "allow_credentials",
    "AllowHeaders": "allow_headers",
    "AllowMethods": "allow_methods",
    "AllowOrigins": "allow_origins",
    "ExposeHeaders": "expose_headers",
    "MaxAge": "max_age_s",
}


class Urls:
    """Handlers of the operations on function URLs."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "CreateFunctionUrlConfig": self.create,
            "GetFunctionUrlConfig": self.get,
            "UpdateFunctionUrlConfig": self.update,
            "DeleteFunctionUrlConfig": self.delete,
            "ListFunctionUrlConfigs": self.list_urls,
        }

    def retelling(self, handler: Handler) -> Handler:
        """`handler`, which changes a resource policy; the data plane then hears of the function's URLs again."""

        @functools.wraps(handler)
        async def handle(context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
            answer = await handler(context, params)
            key = parse_function_ref(params["FunctionName"], None, context.account, context.region).key
            async with self._control.exclusive(key):
                for record, policy in await self._control.rows(lambda rows: _with_policies(rows, rows.urls.urls(key))):
                    self._tell(record, policy)
            return answer

        return handle

    async def load(self) -> None:
        """Tell the data plane of every URL that is stored."""

        for record, policy in await self._control.rows(lambda rows: _with_policies(rows, rows.urls.all_urls())):
            self._tell(record, policy)

    async def create(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._named(context, params, "CreateFunctionUrlConfig")
        now = self._now()
        spec = UrlSpec(
            id="".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_CHARS)),
            key=ref.key,
            qualifier=ref.qualifier,
            auth_type=UrlAuthType(params["AuthType"]),
            invoke_mode=InvokeMode(params.get("InvokeMode", InvokeMode.BUFFERED)),
            cors=_cors(params.get("Cors")),
        )
        record = UrlRecord(spec=spec, created=now, modified=now)

        def work(rows: FunctionRows) -> PolicyRecord | None:
            missing = ref.qualifier is not None and rows.alias(ref.key, ref.qualifier) is None
            if missing or rows.function(ref.key) is None:
                raise ResourceNotFound("Function does not exist")
            latest = rows.version(ref.key)
            if latest is not None and latest.tenancy:
                raise not_per_tenant("FunctionUrl")
            if rows.urls.url(ref.key, ref.qualifier) is not None:
                raise ResourceConflict(
                    f"Failed to create function url config for [functionArn = {ref.arn}]. Error message:  "
                    "FunctionUrlConfig exists for this Lambda function"
                )
            rows.urls.insert_url(record)
            return rows.policy(ref.key, ref.qualifier)

        async with self._control.exclusive(ref.key):
            self._tell(record, await self._control.rows(work))
        answer = self._described(record)
        del answer["LastModifiedTime"]  # neither is in the answer to a creation, unless the mode was asked for
        if "InvokeMode" not in params:
            del answer["InvokeMode"]
        return answer

    async def get(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._named(context, params, "GetFunctionUrlConfig")
        return self._described(await self._control.rows(lambda rows: _required(rows, ref)))

    async def update(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._named(context, params, "UpdateFunctionUrlConfig")

        def work(rows: FunctionRows) -> tuple[UrlRecord, PolicyRecord | None]:
            record = _required(rows, ref)
            spec = record.spec
            record.spec = msgspec.structs.replace(
                spec,
                auth_type=UrlAuthType(params.get("AuthType", spec.auth_type)),
                invoke_mode=InvokeMode(params.get("InvokeMode", spec.invoke_mode)),
                cors=_cors(params["Cors"]) if "Cors" in params else spec.cors,
            )
            record.modified = self._now()
            rows.urls.replace_url(record)
            return record, rows.policy(ref.key, ref.qualifier)

        async with self._control.exclusive(ref.key):
            record, policy = await self._control.rows(work)
            self._tell(record, policy)
        return self._described(record)

    async def delete(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._named(context, params, "DeleteFunctionUrlConfig")

        def work(rows: FunctionRows) -> UrlRecord:
            record = _required(rows, ref)
            rows.urls.delete_url(ref.key, ref.qualifier)
            return record

        async with self._control.exclusive(ref.key):
            record = await self._control.rows(work)
            self._control.deployments.remove_url(record.spec.id)
        return {}

    async def list_urls(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "ListFunctionUrlConfigs")
        size = paging.page_size(params)
        start = paging.after(params, paging.NameMarker, None)

        def read(rows: FunctionRows) -> list[UrlRecord]:
            if rows.function(key) is None:
                raise ResourceNotFound("Function does not exist")
            return rows.urls.urls(key, after=None if start is None else start.name, limit=size + 1)

        found = await self._control.rows(read)
        records, marker = paging.page(found, size, lambda record: paging.NameMarker(record.spec.qualifier or ""))
        return {"FunctionUrlConfigs": [self._described(each) for each in records], "NextMarker": marker}

    def _named(self, context: CallContext, params: dict[str, Any], operation: str) -> FunctionRef:
        """A function, or an alias of one: nothing else has a URL."""
        ref = self._control.named(context, params, operation)
        if ref.qualifier is not None and (ref.qualifier == LATEST or ref.qualifier.isdecimal()):
            raise broken_constraint(
                ref.qualifier,
                "qualifier",
                f"Member must satisfy regular expression pattern: {_QUALIFIER_PATTERN}",
            )
        return ref

    def _tell(self, record: UrlRecord, policy: PolicyRecord | None) -> None:
        self._control.deployments.set_url(record.spec, _permits(record.spec, policy))

    def _now(self) -> str:
        """A moment as the times of a URL are written."""
        microseconds = self._control.settings.now_ns() // 1_000
        seconds, rest = divmod(microseconds, 1_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"

    def _described(self, record: UrlRecord) -> dict[str, Any]:
        spec = record.spec
        return {
            "FunctionUrl": self._control.settings.url_base.url(spec.id, spec.key.region),
            "FunctionArn": spec.arn,
            "AuthType": spec.auth_type.value,
            "Cors": _cors_members(spec.cors),
            "CreationTime": record.created,
            "LastModifiedTime": record.modified,
            "InvokeMode": spec.invoke_mode.value,
        }


def _with_policies(rows: FunctionRows, records: Iterable[UrlRecord]) -> list[tuple[UrlRecord, PolicyRecord | None]]:
    return [(each, rows.policy(each.spec.key, each.spec.qualifier)) for each in records]


def _required(rows: FunctionRows, ref: FunctionRef) -> UrlRecord:
    record = rows.urls.url(ref.key, ref.qualifier)
    if record is None:
        raise ResourceNotFound("The resource you requested does not exist.")
    return record


def _cors(members: dict[str, Any] | None) -> Cors | None:
    """The configuration of a request; None when it says nothing."""
    if not members:
        return None
    return msgspec.convert({_CORS_MEMBERS[name]: value for name, value in members.items()}, Cors)


def _cors_members(cors: Cors | None) -> dict[str, Any] | None:
    if cors is None:
        return None
    found = {member: getattr(cors, name) for member, name in _CORS_MEMBERS.items()}
    return {
        member: list(value) if isinstance(value, tuple) else value
        for member, value in found.items()
        if value is not None
    }


def _permits(spec: UrlSpec, policy: PolicyRecord | None) -> Callable[[str], bool]:
    """Whether the resource policy lets a caller (an account, or anybody) use this URL. Both actions are needed since
    October 2025 (fact sheet of events, 3.3)."""
    document = policies.document_of(policy)
    values = {"lambda:FunctionUrlAuthType": spec.auth_type.value, "lambda:InvokedViaFunctionUrl": "true"}

    @functools.lru_cache(_PERMITS_CACHE)
    def permits(caller: str) -> bool:
        return all(
            policy_rules.allows(document, action, caller, resource=spec.arn, context=values)
            for action in ("lambda:InvokeFunctionUrl", "lambda:InvokeFunction")
        )

    return permits

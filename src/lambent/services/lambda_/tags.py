"""Tags of functions. The other things that AWS lets one tag do not exist here, and are answered so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.model.names import FunctionKey
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import function_not_found
from lambent.services.lambda_.validation import check_tags
from lambent.store.functions import FunctionRows
from lambent.store.records import FunctionRecord

_RESOURCE = re.compile(r"arn:[^:]+:lambda:[^:]+:\d{12}:(?P<type>[a-z-]+):(?P<rest>.+)")
_MISSING = {
    "event-source-mapping": "Event source mapping not found: {}",
    "capacity-provider": "Capacity provider not found: {}",
    "code-signing-config": "Code signing config not found: {}",
}


class Tags:
    """Handlers of TagResource, UntagResource and ListTags."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {"TagResource": self.tag, "UntagResource": self.untag, "ListTags": self.list_tags}

    async def tag(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._function(context, params, "TagResource")
        added = params["Tags"]
        if not added:
            raise InvalidParameterValue("An error occurred and the request cannot be processed.")
        await self._change(key, added, ())
        return {}

    async def untag(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._function(context, params, "UntagResource")
        await self._change(key, {}, params["TagKeys"])
        return {}

    async def list_tags(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._function(context, params, "ListTags")
        record = await self._control.rows(lambda rows: _require(rows, key))
        return {"Tags": record.tags}

    async def _change(self, key: FunctionKey, added: dict[str, str], removed: Iterable[str]) -> None:
        def work(rows: FunctionRows) -> None:
            record = _require(rows, key)
            tags = {**record.tags, **added}
            for name in removed:
                tags.pop(name, None)
            check_tags(tags)
            record.tags = tags
            rows.save_function(record)

        await self._control.rows(work)

    def _function(self, context: CallContext, params: dict[str, Any], operation: str) -> FunctionKey:
        """The function that an ARN names. Raises for everything else that has an ARN."""
        arn = params["Resource"]
        match = _RESOURCE.fullmatch(arn)
        if match is None or match["type"] != "function":
            text = _MISSING.get(match["type"], "The resource you requested does not exist.") if match else arn
            raise ResourceNotFound(text.format(arn))
        ref = self._control.named(context, {"FunctionName": arn}, operation)
        if ref.qualifier is not None:
            raise InvalidParameterValue(
                "Tags on function aliases and versions are not supported. Please specify a function ARN."
            )
        return ref.key


def _require(rows: FunctionRows, key: FunctionKey) -> FunctionRecord:
    record = rows.function(key)
    if record is None:
        raise function_not_found(key.arn())
    return record

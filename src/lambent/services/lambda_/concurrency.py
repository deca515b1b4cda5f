"""Reserved concurrency: a function's own share of the account's, its floor and its ceiling."""

from __future__ import annotations

from typing import Any

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue
from lambent.model.names import LATEST
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import function_not_found
from lambent.services.lambda_.provisioned import provisioned_total, unreserved_of
from lambent.store.functions import FunctionRows


class Concurrency:
    """Handlers of Put-, Get- and DeleteFunctionConcurrency."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "PutFunctionConcurrency": self.put,
            "GetFunctionConcurrency": self.get,
            "DeleteFunctionConcurrency": self.delete,
        }

    async def put(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        wanted = params["ReservedConcurrentExecutions"]
        await self._set(context, params, wanted, "PutFunctionConcurrency")
        return {"ReservedConcurrentExecutions": wanted}

    async def delete(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        await self._set(context, params, None, "DeleteFunctionConcurrency")
        return {}

    async def get(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "GetFunctionConcurrency")
        record = await self._control.rows(lambda rows: rows.function(key))
        if record is None:
            raise function_not_found(key.arn())
        return {} if record.reserved is None else {"ReservedConcurrentExecutions": record.reserved}

    async def _set(self, context: CallContext, params: dict[str, Any], wanted: int | None, operation: str) -> None:
        control = self._control
        key = control.named_function(context, params, operation)
        account_limit = control.settings.account_concurrency

        def work(rows: FunctionRows) -> None:
            record = rows.function(key)
            if record is None:
                raise function_not_found(key.arn(LATEST))
            provisioned = provisioned_total(rows, key)
            if wanted is not None and wanted < provisioned:
                raise InvalidParameterValue(
                    f" ReservedConcurrentExecutions  {wanted} should not be lower than function's total provisioned "
                    f"concurrency [{provisioned}].",
                    with_type=False,
                )
            unreserved = unreserved_of(rows, key.account, key.region, account_limit, without=key) - (wanted or 0)
            if wanted and unreserved < limits.UNRESERVED_CONCURRENCY_MIN:
                raise InvalidParameterValue(
                    "Specified ReservedConcurrentExecutions for function decreases account's "
                    "UnreservedConcurrentExecution below its minimum value of "
                    f"[{limits.UNRESERVED_CONCURRENCY_MIN}].",
                    with_type=False,
                )
            record.reserved = wanted
            rows.save_function(record)

        async with control.exclusive(key):
            await control.rows(work)
            control.deployments.set_reserved(key, wanted)

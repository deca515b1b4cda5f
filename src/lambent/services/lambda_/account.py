"""Answers about the account, and about features of a function that are always in the state in which AWS
begins.

The latter are asked for by Terraform, SAM and CDK whenever they look at a function.
"""

from __future__ import annotations

from typing import Any

from lambent.model import limits
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_.control import Control, resolve
from lambent.services.lambda_.messages import function_not_found
from lambent.services.lambda_.provisioned import unreserved_of
from lambent.store.functions import FunctionRows


class Account:
    """Handlers of GetAccountSettings and of the questions with one answer."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "GetAccountSettings": self.settings,
            "GetFunctionCodeSigningConfig": self.code_signing,
            "GetFunctionRecursionConfig": self.recursion,
            "GetRuntimeManagementConfig": self.runtime_management,
        }

    async def settings(self, context: CallContext, _params: dict[str, Any]) -> dict[str, Any]:
        account, region = context.account, context.region
        concurrency = self._control.settings.account_concurrency

        def read(rows: FunctionRows) -> tuple[int, int, int]:
            return (
                rows.code_bytes_total(account, region),
                rows.count_functions(account, region),
                unreserved_of(rows, account, region, concurrency),
            )

        code_bytes, functions, unreserved = await self._control.rows(read)
        return {
            "AccountLimit": {
                "TotalCodeSize": limits.CODE_STORAGE_MAX_BYTES,
                "CodeSizeUnzipped": limits.UNZIPPED_MAX_BYTES,
                "CodeSizeZipped": limits.ZIP_MAX_BYTES,
                "ConcurrentExecutions": concurrency,
                "UnreservedConcurrentExecutions": max(0, unreserved),
            },
            "AccountUsage": {"TotalCodeSize": code_bytes, "FunctionCount": functions},
        }

    async def code_signing(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named(context, params, "GetFunctionCodeSigningConfig").key
        if await self._control.rows(lambda rows: rows.function(key)) is None:
            raise function_not_found(key.arn())
        return {"CodeSigningConfigArn": "", "FunctionName": key.name}

    async def recursion(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "GetFunctionRecursionConfig")
        if await self._control.rows(lambda rows: rows.function(key)) is None:
            raise function_not_found(key.arn())
        return {"RecursiveLoop": "Terminate"}

    async def runtime_management(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._control.named(context, params, "GetRuntimeManagementConfig")
        found = await self._control.rows(lambda rows: resolve(rows, ref))
        return {"UpdateRuntimeOn": "Auto", "FunctionArn": found.arn}

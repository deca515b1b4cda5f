"""AddPermission, RemovePermission, GetPolicy: the resource policies of functions, their versions and aliases.

Each of the three has a policy of its own. A policy's RevisionId is its own as well; as long as there is no policy, that
of the function, version or alias stands for it, so that a first AddPermission can be guarded too.
"""

from __future__ import annotations

from typing import Any

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.model.names import LATEST, FunctionRef
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import policies, policy_rules
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import function_not_found
from lambent.store.functions import FunctionRows
from lambent.store.records import PolicyRecord, ordinal_of

_VIA_URL = {True: "true", False: "false"}


class Permissions:
    """Handlers of the operations on functions' resource policies."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {"AddPermission": self.add, "RemovePermission": self.remove, "GetPolicy": self.get}

    async def add(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._control.named(context, params, "AddPermission")
        _refuse_latest(ref)
        added = _statement(ref, params)

        def work(rows: FunctionRows) -> None:
            revision_id = _revision_of(rows, ref)
            policy = rows.policy(ref.key, ref.qualifier)
            current = policy.revision_id if policy else revision_id
            policies.require_revision(params.get("RevisionId"), current, "GetPolicy")
            changed = policies.with_statement(policy, added, self._control.new_revision())
            rows.save_policy(ref.key, ref.qualifier, changed)

        await self._control.rows(work)
        return {"Statement": policy_rules.written(added)}

    async def remove(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._control.named(context, params, "RemovePermission")

        def work(rows: FunctionRows) -> None:
            if rows.function(ref.key) is None:
                raise ResourceNotFound(f"No policy found for: {ref.arn}")
            policy = rows.policy(ref.key, ref.qualifier)
            if policy is not None:
                policies.require_revision(params.get("RevisionId"), policy.revision_id, "GetPolicy")
            changed = policies.without_statement(policy, params["StatementId"], self._control.new_revision())
            if changed is None:
                rows.delete_policy(ref.key, ref.qualifier)
            else:
                rows.save_policy(ref.key, ref.qualifier, changed)

        await self._control.rows(work)
        return {}

    async def get(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._control.named(context, params, "GetPolicy")

        def read(rows: FunctionRows) -> PolicyRecord | None:
            return rows.policy(ref.key, ref.qualifier)

        policy = await self._control.rows(read)
        if policy is None:
            # The same for a function without a policy and for no function.
            raise ResourceNotFound("The resource you requested does not exist.")
        return policies.answer(policy)


def _refuse_latest(ref: FunctionRef) -> None:
    if ref.qualifier == LATEST:
        raise InvalidParameterValue("We currently do not support adding policies for $LATEST.")


def _revision_of(rows: FunctionRows, ref: FunctionRef) -> str:
    """RevisionId of what the policy is for. Raises ResourceNotFound."""
    if rows.function(ref.key) is None:
        raise function_not_found(ref.key.arn())
    if ref.qualifier is not None and ordinal_of(ref.qualifier) < 0:
        alias = rows.alias(ref.key, ref.qualifier)
        if alias is None:
            raise ResourceNotFound(f"Cannot find alias arn: {ref.arn}")
        return alias.revision_id
    record = rows.version(ref.key, ref.qualifier or LATEST)
    if record is None:
        raise function_not_found(ref.arn)
    return record.revision_id


def _statement(ref: FunctionRef, params: dict[str, Any]) -> policy_rules.Statement:
    """The statement that a request describes. Raises InvalidParameterValue."""
    who = policy_rules.principal(params["Principal"])
    if who is None:
        raise InvalidParameterValue("The provided principal was invalid. Please check the principal and try again.")
    action = params["Action"]
    if "FunctionUrlAuthType" in params and action != "lambda:InvokeFunctionUrl":
        raise InvalidParameterValue("FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action")
    via_url = params.get("InvokedViaFunctionUrl")
    return policy_rules.statement(
        params["StatementId"],
        who,
        action,
        ref.arn,
        (
            ("StringEquals", "AWS:SourceAccount", params.get("SourceAccount")),
            ("StringEquals", "lambda:EventSourceToken", params.get("EventSourceToken")),
            ("StringEquals", "lambda:FunctionUrlAuthType", params.get("FunctionUrlAuthType")),
            ("StringEquals", "aws:PrincipalOrgID", params.get("PrincipalOrgID")),
            ("Bool", "lambda:InvokedViaFunctionUrl", None if via_url is None else _VIA_URL[via_url]),
            ("ArnLike", "AWS:SourceArn", params.get("SourceArn")),
        ),
    )

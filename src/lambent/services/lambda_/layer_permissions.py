"""The policies of layer versions, which let other accounts use them: AddLayerVersionPermission and the like."""

from __future__ import annotations

from typing import Any

from lambent.model.errors import ResourceNotFound
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import policies, policy_rules
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.layer_access import require_owner
from lambent.services.lambda_.layer_names import LayerRef
from lambent.services.lambda_.layers import named_version
from lambent.store.functions import FunctionRows
from lambent.store.records import LayerVersionRecord

#: The operation that the texts of AWS name; it is not called so in the API.
_READ = "GetLayerPolicy"


class LayerPermissions:
    """Handlers of the operations on layer versions' policies."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "AddLayerVersionPermission": self.add,
            "RemoveLayerVersionPermission": self.remove,
            "GetLayerVersionPolicy": self.get,
        }

    async def add(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = _own(context, params, "AddLayerVersionPermission")
        who = policy_rules.principal(params["Principal"])
        assert who is not None, "the model allows an account, its root, or everybody"
        organization = ("StringEquals", "aws:PrincipalOrgID", params.get("OrganizationId"))
        added = policy_rules.statement(params["StatementId"], who, params["Action"], ref.arn, (organization,))
        revision_id = self._control.new_revision()

        def work(rows: FunctionRows) -> None:
            record = _require(rows, ref)
            _require_revision(record, params)
            record.policy = policies.with_statement(record.policy, added, revision_id)
            rows.layers.replace_version(record)

        await self._control.rows(work)
        return {"Statement": policy_rules.written(added), "RevisionId": revision_id}

    async def remove(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = _own(context, params, "RemoveLayerVersionPermission")

        def work(rows: FunctionRows) -> None:
            record = _require(rows, ref)
            if record.policy is not None:
                _require_revision(record, params)
            revision_id = self._control.new_revision()
            record.policy = policies.without_statement(record.policy, params["StatementId"], revision_id)
            rows.layers.replace_version(record)

        await self._control.rows(work)
        return {}

    async def get(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = _own(context, params, "GetLayerVersionPolicy")
        record = await self._control.rows(lambda rows: _require(rows, ref))
        if record.policy is None:
            raise policies.no_policy()
        return policies.answer(record.policy)


def _own(context: CallContext, params: dict[str, Any], operation: str) -> LayerRef:
    ref = named_version(context, params)
    require_owner(ref.key, context.account, f"lambda:{operation}", ref.arn)
    return ref


def _require(rows: FunctionRows, ref: LayerRef) -> LayerVersionRecord:
    record = rows.layers.version(ref.key, ref.version)
    if record is None:
        raise ResourceNotFound(f"Layer version {ref.arn} does not exist.")
    return record


def _require_revision(record: LayerVersionRecord, params: dict[str, Any]) -> None:
    current = record.policy.revision_id if record.policy else None
    policies.require_revision(params.get("RevisionId"), current, _READ)

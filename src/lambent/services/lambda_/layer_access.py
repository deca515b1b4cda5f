"""Who may do what with a layer: its own account everything, others what the version's policy says."""

from __future__ import annotations

from lambent.model.errors import AccessDenied
from lambent.services.lambda_ import policies, policy_rules
from lambent.services.lambda_.layer_names import LayerRef
from lambent.store.functions import FunctionRows
from lambent.store.records import LayerKey, LayerVersionRecord

GET = "lambda:GetLayerVersion"


def readable_version(rows: FunctionRows, ref: LayerRef, account: str) -> LayerVersionRecord | None:
    """The version, or None when `account` has a layer without it. Raises AccessDenied for an account that may not
    even know."""
    record = rows.layers.version(ref.key, ref.version)
    if ref.key.account != account:
        policy = policies.document_of(record.policy) if record else None
        if not policy_rules.allows(policy, GET, account, resource=ref.arn):
            raise access_denied(account, GET, ref.arn)
    return record


def require_owner(key: LayerKey, account: str, action: str, arn: str) -> None:
    """For what no policy of a layer can allow."""
    if key.account != account:
        raise access_denied(account, action, arn)


def access_denied(account: str, action: str, arn: str) -> AccessDenied:
    return AccessDenied(
        f"User: arn:aws:iam::{account}:root is not authorized to perform: {action} on resource: {arn} because no "
        f"resource-based policy allows the {action} action"
    )

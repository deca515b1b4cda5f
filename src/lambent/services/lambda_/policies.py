"""Resource policies as they change: one statement more or less, under the rules that functions and layer versions
share.

Pure functions over `PolicyRecord`; what the statements mean is in `policy_rules`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lambent.model.errors import ApiError, PreconditionFailed, ResourceConflict, ResourceNotFound
from lambent.services.lambda_.policy_rules import Statement, document, written
from lambent.store.records import PolicyRecord

POLICY_MAX_BYTES = 20_480


class PolicyLengthExceeded(ApiError):
    code: ClassVar[str] = "PolicyLengthExceededException"
    status: ClassVar[int] = 400
    message_key: ClassVar[str] = "message"


def no_policy() -> ResourceNotFound:
    return ResourceNotFound("No policy is associated with the given resource.")


def require_revision(sent: str | None, current: str | None, operation: str) -> None:
    """Raise the 412 for a caller who has seen another policy than the current one. `operation` reads policies of this
    kind."""
    if sent and sent != current:
        raise PreconditionFailed(
            "The Revision Id provided does not match the latest Revision Id. "
            f"Call the {operation} API to retrieve the latest Revision Id"
        )


def with_statement(policy: PolicyRecord | None, added: Statement, revision_id: str) -> PolicyRecord:
    """The policy with one statement more. Raises ResourceConflict for its id, PolicyLengthExceeded for its size."""
    before = policy.statements if policy else ()
    if any(each["Sid"] == added["Sid"] for each in before):
        raise ResourceConflict(
            f"The statement id ({added['Sid']}) provided already exists. Please provide a new statement id, "
            "or remove the existing statement."
        )
    changed = PolicyRecord(revision_id=revision_id, statements=(*before, added))
    size = len(text_of(changed).encode())
    if size > POLICY_MAX_BYTES:
        raise PolicyLengthExceeded(f"The final policy size ({size}) is bigger than the limit ({POLICY_MAX_BYTES}).")
    return changed


def without_statement(policy: PolicyRecord | None, sid: str, revision_id: str) -> PolicyRecord | None:
    """The policy without a statement; None when nothing is left of it. Raises ResourceNotFound."""
    if policy is None:
        raise no_policy()
    left = tuple(each for each in policy.statements if each["Sid"] != sid)
    if len(left) == len(policy.statements):
        raise ResourceNotFound(f"Statement {sid} is not found in resource policy.")
    return PolicyRecord(revision_id=revision_id, statements=left) if left else None


def document_of(policy: PolicyRecord | None) -> dict[str, Any] | None:
    """The document that `policy_rules.allows` reads."""
    return None if policy is None else document(policy.statements)


def text_of(policy: PolicyRecord) -> str:
    return written(document(policy.statements))


def answer(policy: PolicyRecord) -> dict[str, Any]:
    """As GetPolicy and GetLayerVersionPolicy answer."""
    return {"Policy": text_of(policy), "RevisionId": policy.revision_id}

"""What became of an invocation, as the runtime or the platform said it, until its environment has settled."""

from __future__ import annotations

from lambent.model.invocation import Outcome
from lambent.model.limits import RESPONSE_MAX_BYTES

#: Error types that the platform shows as they are; others are Runtime.Unknown.
ERROR_FAMILIES = frozenset(("Runtime", "Function", "Extension", "Sandbox"))
TOO_LARGE = (
    # The client reads errorMessage first here, as AWS writes it.
    b'{"errorMessage":"Response payload size exceeded maximum allowed payload size (%d bytes).",'
    b'"errorType":"Function.ResponseSizeTooLarge"}' % RESPONSE_MAX_BYTES
)


class Answer:
    """What the runtime has said to the invocation of the moment, until the environment has settled."""

    __slots__ = ("content_type", "error_type", "is_sent", "outcome", "payload", "status", "streamed")

    def __init__(
        self, outcome: Outcome, payload: bytes, error_type: str | None, content_type: str, streamed: bool
    ) -> None:
        self.outcome = outcome
        self.payload = payload
        self.error_type = error_type
        self.content_type = content_type
        self.streamed = streamed
        self.status = "success" if outcome is Outcome.SUCCESS else "error"
        self.is_sent = False

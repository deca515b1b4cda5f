"""A function that imports boto3 at init, as most functions on AWS do: the cold start that users see."""

import boto3  # noqa: F401  imported for its cost


def handler(event, context):  # noqa: ARG001  Lambda passes both
    """Return the event as it came."""
    return event

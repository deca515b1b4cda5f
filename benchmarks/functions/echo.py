"""The trivial function of the benchmarks: what is measured around it is the platform, not the function."""


def handler(event, context):  # noqa: ARG001  Lambda passes both
    """Return the event as it came."""
    return event

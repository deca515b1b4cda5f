"""CloudWatch Logs on the log store: the operations that clients of Lambda use. See `service`."""

from lambent.services.logs.service import make_logs_service

__all__ = ["make_logs_service"]

"""CloudWatch metrics on the metric store: reading, listing and publishing. See `service`."""

from lambent.services.cloudwatch.service import CloudWatchService, make_cloudwatch_service

__all__ = ["CloudWatchService", "make_cloudwatch_service"]

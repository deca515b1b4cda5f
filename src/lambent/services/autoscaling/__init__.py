"""Application Auto Scaling for the provisioned concurrency of functions. See `service`."""

from lambent.services.autoscaling.room import Room
from lambent.services.autoscaling.scaler import PERIOD_S, Scaler
from lambent.services.autoscaling.service import make_autoscaling_service

__all__ = ["PERIOD_S", "Room", "Scaler", "make_autoscaling_service"]

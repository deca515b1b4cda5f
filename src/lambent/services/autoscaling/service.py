"""Application Auto Scaling's API (JSON 1.1, `AnyScaleFrontendService.*`) for one kind of target: the provisioned
concurrency of functions.

Not here: step and predictive scaling, which AWS does not have for this dimension, and other services' resources. The
two alarms of a policy are answered by name and looked at by `scaler`; CloudWatch's API does not list them.
"""

from __future__ import annotations

from lambent.services.autoscaling.actions import Actions
from lambent.services.autoscaling.policies import Policies
from lambent.services.autoscaling.room import Room
from lambent.services.autoscaling.targets import Targets
from lambent.services.base import ModelService
from lambent.wire.json_rpc import JsonRpcCodec
from lambent.wire.service_model import load


def make_autoscaling_service(room: Room) -> ModelService:
    """The service, ready to be asked."""
    rooms = (Targets(room), Policies(room), Actions(room))
    handlers = {name: each for part in rooms for name, each in part.handlers().items()}
    return ModelService(JsonRpcCodec(load("application-autoscaling")), handlers)

"""Names of Application Auto Scaling: what a resource id says, and the ARNs that are made of it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import msgspec

from lambent.model.errors import ValidationError
from lambent.model.names import FunctionKey
from lambent.store.scaling import TargetKey

NAMESPACE: Final = "lambda"
DIMENSION: Final = "lambda:function:ProvisionedConcurrency"
_RESOURCE = re.compile(r"function:([a-zA-Z0-9-_]{1,64}):([a-zA-Z0-9-_]{1,128})")
_UNSUPPORTED: Final = "Unsupported service namespace, resource type or scalable dimension"


def target_key(account: str, region: str, params: dict[str, Any]) -> TargetKey:
    """The target that a request names. Raises ValidationError for what can not be scaled here."""
    if params["ServiceNamespace"] != NAMESPACE:
        raise ValidationError(f"{_UNSUPPORTED}. Lambent scales the provisioned concurrency of functions only.")
    resource = params["ResourceId"]
    if params["ScalableDimension"] != DIMENSION or _RESOURCE.fullmatch(resource) is None:
        raise ValidationError(_UNSUPPORTED)
    return TargetKey(account, region, resource)


def function_of(key: TargetKey) -> tuple[FunctionKey, str]:
    """The function and the alias or version."""
    match = _RESOURCE.fullmatch(key.resource)
    assert match is not None, "only such keys are made"
    return FunctionKey(key.account, key.region, match[1]), match[2]


def target_arn(key: TargetKey, identity: str) -> str:
    return f"arn:aws:application-autoscaling:{key.region}:{key.account}:scalable-target/{identity}"


def policy_arn(key: TargetKey, identity: str, name: str) -> str:
    return f"{_scaling_arn(key, 'scalingPolicy', identity)}:policyName/{name}"


def action_arn(key: TargetKey, identity: str, name: str) -> str:
    return f"{_scaling_arn(key, 'scheduledAction', identity)}:scheduledActionName/{name}"


def _scaling_arn(key: TargetKey, kind: str, identity: str) -> str:
    return f"arn:aws:autoscaling:{key.region}:{key.account}:{kind}:{identity}:resource/lambda/{key.resource}"


def alarm_document(key: TargetKey, side: str, identity: str) -> dict[str, str]:
    """As PutScalingPolicy answers it; `side` is High or Low."""
    name = f"TargetTracking-{key.resource}-Alarm{side}-{identity}"
    return {"AlarmName": name, "AlarmARN": f"arn:aws:cloudwatch:{key.region}:{key.account}:alarm:{name}"}


def service_role(account: str) -> str:
    """The service-linked role that AWS acts under."""
    name = "AWSServiceRoleForApplicationAutoScaling_LambdaConcurrency"
    return f"arn:aws:iam::{account}:role/aws-service-role/lambda.application-autoscaling.amazonaws.com/{name}"


def write_token(place: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode()


def read_token(text: str) -> Any:
    """What `write_token` was given. Raises ValueError."""
    try:
        return msgspec.msgpack.decode(base64.b64decode(text.encode(), b"-_", validate=True))
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(text) from error

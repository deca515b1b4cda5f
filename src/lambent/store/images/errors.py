"""What can be wrong with an image: inside this package as a `SourceError`, for clients as an `ImageProblem`.

    SourceError         ImageProblem          StateReasonCode
    ├── Missing         ImageMissing          ImageDeleted
    ├── Denied          ImageDenied           ImageAccessDenied
    ├── Broken          ImageInvalid          InvalidImage
    ├── NotAllowed      ImageInvalid          InvalidImage
    └── Unreachable     ImageUnreachable      InternalError

The modules that read bytes do not know under which name the image was asked for; `told` adds it.
"""

from __future__ import annotations

from typing import ClassVar

from lambent.model.errors import AccessDenied, ApiError, InvalidParameterValue


class SourceError(Exception):
    """Something about an image, its source or its bytes. The message is one clause for the client."""


class Missing(SourceError):
    """There is no such image."""


class Denied(SourceError):
    """The source wants other credentials."""


class Broken(SourceError):
    """Not an image, or one that can not be unpacked."""


class NotAllowed(SourceError):
    """The server's options forbid it; the message says which one."""


class Unreachable(SourceError):
    """The source does not answer, or we stopped asking."""


class ImageProblem(ApiError):
    """Why an image can not be used, in AWS's words where there are any."""

    reason_code: ClassVar[str] = "InvalidImage"


class ImageInvalid(ImageProblem, InvalidParameterValue):
    reason_code = "InvalidImage"


class ImageMissing(ImageProblem, InvalidParameterValue):
    reason_code = "ImageDeleted"


class ImageDenied(ImageProblem, AccessDenied):
    reason_code = "ImageAccessDenied"


class ImageUnreachable(ImageProblem, InvalidParameterValue):
    reason_code = "InternalError"


def told(uri: str, error: SourceError) -> ImageProblem:
    """The error as the client gets it: AWS's sentence first, because clients match on it, then ours."""
    detail = f" ({error})" if str(error) else ""
    match error:
        case Missing():
            return ImageMissing(f"Source image {uri} does not exist. Provide a valid source image.{detail}")
        case Denied():
            return ImageDenied(
                f"Lambda does not have permission to access the ECR image. Check the ECR permissions.{detail}"
            )
        case NotAllowed():
            return ImageInvalid(f"Source image {uri} is not allowed. {error}")
        case Unreachable():
            return ImageUnreachable(f"Source image {uri} could not be read{detail}.")
    return ImageInvalid(f"Source image {uri} is not valid. Provide a valid source image.{detail}")

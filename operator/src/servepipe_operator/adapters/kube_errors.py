"""What the Kubernetes API server answers when it says no, as exceptions.

`Unavailable` and its kin are also `ports.UnreachableError`: nothing is known about the object, and the engine goes on
blindly or tries later. All others are answers: the server looked and refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from servepipe_operator.ports import UnreachableError

__all__ = [
    "AlreadyExists",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "KubeError",
    "NamespaceTerminating",
    "NotFound",
    "QuotaExceeded",
    "TooManyRequests",
    "Unavailable",
    "error_from",
]

ERROR_CHARS = 2000


#: The second for a moment, while nobody has counted yet.
_TOO_LARGE = "etcdserver: request is too large"
#: Refusals of the body that the server calls errors of its own: asking again changes nothing.
_BODY_500 = re.compile(f"failed to create typed patch object|{_TOO_LARGE}")
_QUOTA = re.compile("exceeded quota|status unknown for quota")


#: The second from the admission plug-in that keeps owners from being held by those who may not hold them.
_LACKS_RIGHT = re.compile(r'User ".*" cannot \w+ resource|you can\'t set finalizers on')


class KubeError(Exception):
    """A request that the API server refused.

    Args:
        message: What was asked and what the server said.
        code: The HTTP status; 0 when there was no answer.
        reason: The `reason` of the server's Status, like ``NotFound``.
        causes: The `details.causes` of the server's Status, each as ``field: message``.
    """

    def __init__(self, message: str, code: int = 0, reason: str = "", causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.causes = causes


class NotFound(KubeError):  # noqa: N818 - named as Kubernetes names its reasons
    """The object, or its whole kind (no such CRD), is not there; `kind_missing` tells the latter."""

    kind_missing = False


class Conflict(KubeError):  # noqa: N818
    """The object changed meanwhile, or a precondition or a patch's ``test`` failed: read again."""


class AlreadyExists(KubeError):  # noqa: N818
    """A create under a name that is taken."""


class Forbidden(KubeError):  # noqa: N818
    """Not allowed; `lacks_right`: by the operator's Role, else by an admission plug-in."""

    @property
    def lacks_right(self) -> bool:
        """Whether authorization refused it, which looks at who asks and not at what."""
        return _LACKS_RIGHT.search(str(self)) is not None


class NamespaceTerminating(Forbidden):
    """Nothing can be created in a namespace that is being deleted."""


class QuotaExceeded(Forbidden):
    """A ResourceQuota is used up."""


class Invalid(KubeError):  # noqa: N818
    """The body is refused (400, 413, 422, some of 500); `causes` names the fields."""

    @property
    def too_large(self) -> bool:
        """Whether the object would be larger than the server or etcd takes."""
        return self.code == 413 or _TOO_LARGE in str(self)


class Gone(KubeError):  # noqa: N818
    """The resourceVersion or continue token is too old: list again."""


class Unavailable(KubeError, UnreachableError):  # noqa: N818
    """No useful answer: connection refused, time-out, HTTP 401 or 5xx. The request may have been carried out."""


class TooManyRequests(Unavailable):
    """The server is overloaded (429) and was asked again for as long as allowed; `retry_after_s` is its last advice."""

    retry_after_s: float = 1.0


def error_from(what: str, code: int, text: str, headers: Mapping[str, str]) -> KubeError:
    """The exception for an answer with an HTTP status of 400 or more.

    Args:
        what: The verb and the path, for the message.
        text: The body; usually a Status, but proxies answer anything.
    """
    status = _status(text)
    reason = str(status.get("reason") or "")
    message = str(status.get("message") or text.strip()[:ERROR_CHARS] or "no message")
    details = status.get("details") if isinstance(status.get("details"), dict) else {}
    raw_causes = (details or {}).get("causes") or []
    causes = tuple(
        f"{cause.get('field', '')}: {cause.get('message', '')}".removeprefix(": ")
        for cause in raw_causes
        if isinstance(cause, dict)
    )
    about = (f"{what}: HTTP {code}: {message}", code, reason, causes)
    if code == 404:
        missing = NotFound(*about)
        # An unknown kind is answered in plain text or without the name of an object.
        missing.kind_missing = not (details or {}).get("name")
        return missing
    if code == 409:
        return AlreadyExists(*about) if reason == "AlreadyExists" else Conflict(*about)
    if code == 410:
        return Gone(*about)
    if code == 403:
        if any(cause.get("reason") == "NamespaceTerminating" for cause in raw_causes if isinstance(cause, dict)):
            return NamespaceTerminating(*about)
        return QuotaExceeded(*about) if _QUOTA.search(message) else Forbidden(*about)
    if code == 429:
        busy = TooManyRequests(*about)
        busy.retry_after_s = retry_after_s(headers, default=1.0)
        return busy
    if code == 500 and _BODY_500.search(message):
        return Invalid(*about)
    if code == 401 or code >= 500:
        return Unavailable(*about)
    return Invalid(*about)


def retry_after_s(headers: Mapping[str, str], default: float) -> float:
    """The Retry-After header in seconds, or ``default`` where there is none that can be read."""
    try:
        return max(float(headers.get("Retry-After", "")), 0.0)
    except ValueError:
        return default


def _status(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}

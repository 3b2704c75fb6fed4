"""What went wrong with a request, as the caller is told: one status, one code, one message, the step and node.

400 InvalidJson            the body is not JSON
404 NotFound               another path than the route
405 MethodNotAllowed       another method
413 BodyTooLarge           see spec.ingress.maxBodyBytes
422 InvalidInput           not what the graph reads
500 StepFailed             a step raised; the message has the exception's type and text
500 ValueTooLarge          the arguments or the answer of a node's call are larger than its way takes
500 AnswerNotSupported     a step answered what has no JSON form
500 PreprocessorFailed, PostprocessorFailed
502 ReplicaLost            a replica was lost in the middle of a call that may have been carried out
503 NotReady               a node that the request needs is not there
503 NodeScaledToZero       a node that the request needs is turned off
503 Overloaded             a node has as many calls waiting as maxQueuedRequests allows
504 Timeout                the request or a step took too long
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from servepipe.errors import NodeError, RequestError, ServePipeError
from servepipe.graph.failures import failed_step, message_of
from servepipe.runtime.answers import AnswerNotSupportedError
from servepipe.runtime.interface import Interface

__all__ = ["HookError", "Problem", "first_line", "problem_of"]

CODES = {400: "InvalidRequest", 422: "InvalidInput", 503: "NotReady", 504: "Timeout"}


class HookError(Exception):
    """A preprocessor or postprocessor raised; ``__cause__`` is what it raised.

    Args:
        kind: ``"preprocessor"`` or ``"postprocessor"``.
        import_path: ``"module:function"``.
    """

    def __init__(self, kind: str, import_path: str, cause: BaseException) -> None:
        super().__init__(f"the {kind} {import_path} raised {_described(cause)}")
        self.code = f"{kind.capitalize()}Failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """``log_exception`` is what the log should show with its traceback, None where the message says it all."""

    status: int
    code: str
    message: str
    step: str = ""
    node: str = ""
    headers: Sequence[tuple[bytes, bytes]] = ()
    log_exception: BaseException | None = None

    def body(self, request_id: str) -> dict[str, str]:
        """The JSON object under ``"error"``."""
        told = {"code": self.code, "message": self.message, "step": self.step, "node": self.node}
        return {key: text for key, text in told.items() if text} | {"requestId": request_id}


def problem_of(error: BaseException, interface: Interface, *, postprocessed: bool = False) -> Problem:
    """``error`` as an answer. ``postprocessed``: the answer came from a postprocessor, not from a step."""
    match error:
        case AnswerNotSupportedError():
            step = "" if postprocessed else interface.answering_step(error.path)
            by = "the postprocessor: " if postprocessed else f"step {step}: " if step else ""
            return Problem(500, "AnswerNotSupported", f"{by}{error}", step)
        case HookError():
            return Problem(500, error.code, str(error), log_exception=error.__cause__)
        case RequestError():
            # User code raises them too, and a status that says success, or none at all, would be worse than none.
            status = error.status if isinstance(error.status, int) and 400 <= error.status <= 599 else 500
            code = error.code or CODES.get(status, "RequestFailed")
            message = f"{error.what}. {error.fix}" if error.fix else error.what
            retry = ((b"retry-after", b"1"),) if status == 503 else ()
            step, node, _ = failed_step(error)
            return Problem(status, code, message, step, node or error.node, retry)
        case _:
            step, node, _ = failed_step(error)
            where = f"step {step}" if step else "the graph"
            return Problem(500, "StepFailed", f"{where} failed: {_described(error)}", step, node, log_exception=error)


def first_line(error: BaseException) -> str:
    """What a table of errors has room for."""
    text = message_of(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _described(error: BaseException) -> str:
    if isinstance(error, NodeError | ServePipeError):
        return str(error)
    name = type(error).__name__
    text = message_of(error)
    return f"{name}: {text}" if text else name

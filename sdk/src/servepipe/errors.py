"""Every error that servepipe raises on purpose.

    ServePipeError
    ├── GraphError                  the graph as written in Python, or in `spec.graph`
    │   ├── ValueNotSupportedError  an argument that JSON (or an API server) cannot carry
    │   ├── SignatureError          wrong method, arity or keyword for the bound callable
    │   ├── NamingError             a name that clashes, is reserved or cannot be used
    │   ├── ImportPathError         something that a replica could not import again
    │   └── GraphTooLargeError      more nodes, steps or bytes than the resource may hold
    ├── ResourceError               a ServePipeline that does not validate, with the path in the YAML
    ├── RequestError                a request that the ingress answers with a 4xx or 5xx
    │   ├── BadRequestError         400, 413, 422: the caller's input
    │   ├── NotReadyError           503: a node is off, starting or gone
    │   └── StepTimeoutError        504: a step or the whole request took too long
    ├── NodeError                   an exception of user code that cannot be rebuilt where it is reported
    ├── CodeMismatchError           sources differ from the digest that the resource names
    ├── RuntimeMismatchError        a replica's image has another servepipe or Ray than the head's
    ├── RunError                    starting, stopping or reaching a local run
    └── MissingExtraError           an optional dependency is not installed; names the pip line

Each carries three parts, so that a person, a log and an editor can all use it: ``what`` went wrong,
``where`` (a file and line, or a path in the YAML), and ``fix``, what to do about it.
"""

from __future__ import annotations

__all__ = [
    "BadRequestError",
    "CodeMismatchError",
    "GraphError",
    "GraphTooLargeError",
    "ImportPathError",
    "MissingExtraError",
    "NamingError",
    "NodeError",
    "NotReadyError",
    "RequestError",
    "ResourceError",
    "RunError",
    "RuntimeMismatchError",
    "ServePipeError",
    "SignatureError",
    "StepTimeoutError",
    "ValueNotSupportedError",
]


class ServePipeError(Exception):
    """Base of all errors that servepipe raises on purpose.

    Args:
        what: What went wrong, one sentence without a trailing full stop.
        where: ``"pipeline.py:12"`` or ``"spec.nodes.m1.replicas"``; empty when there is no place.
        fix: What the reader can do about it; empty when ``what`` says it all.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.fix}" if self.fix else head

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by Exception's own pickling; these errors cross processes.
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(cls: type[ServePipeError], state: dict[str, object]) -> ServePipeError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state.get("what"), state.get("where"), state.get("fix"))
    return error


class GraphError(ServePipeError):
    """The graph itself is wrong: a cycle, an unused step, a node of another graph, nothing to run."""


class ValueNotSupportedError(GraphError):
    """An argument is not a JSON value. ``where`` ends in the path of the value inside the argument."""


class SignatureError(GraphError):
    """The bound callable has no such method, or does not take these arguments."""


class NamingError(GraphError):
    """A node's or step's name clashes, is reserved, or cannot be a Kubernetes name."""


class ImportPathError(GraphError):
    """A class, function or preprocessor that another process could not import (lambda, nested, no file)."""


class GraphTooLargeError(GraphError):
    """The compiled resource exceeds a bound of the API (nodes, steps, bytes)."""


class ResourceError(ServePipeError):
    """A ServePipeline document is not valid; ``where`` is the path of the offending field."""


class RequestError(ServePipeError):
    """A request that cannot be answered; ``status`` is the HTTP status that says so.

    Args:
        status: The HTTP status, by default the class's own.
        code: The word that callers' programs tell errors apart by (``"NodeScaledToZero"``); empty for the status's own.
        step: Name of the step that failed, empty where none did.
        node: Name of the node that the step called, empty where none was called.
    """

    status = 500

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        status: int | None = None,
        code: str = "",
        step: str = "",
        node: str = "",
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        if status is not None:
            self.status = status
        self.code = code
        self.step = step
        self.node = node


class BadRequestError(RequestError):
    """The caller's input: not JSON (400), too large (413), or not what the graph reads (422)."""

    status = 422


class NotReadyError(RequestError):
    """A node that the request needs is turned off, still starting, or gone (503)."""

    status = 503


class StepTimeoutError(RequestError):
    """A step, or the request as a whole, took longer than allowed (504)."""

    status = 504


class NodeError(ServePipeError):
    """An exception of user code that could not be rebuilt in this process.

    Args:
        type_name: Qualified name of the original exception's type.
        message: Its ``str()``.
        remote_traceback: The formatted traceback from the process in which it was raised.
    """

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}")
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback


class CodeMismatchError(ServePipeError):
    """The sources found here do not have the digest that the resource names; both are in ``what``."""


class RuntimeMismatchError(ServePipeError):
    """This replica has another version of servepipe or Ray than the head; both are in ``what``."""


class RunError(ServePipeError):
    """A local run cannot be started, stopped or reached."""


class MissingExtraError(ServePipeError):
    """An optional part of servepipe is not installed; ``fix`` is the pip line that installs it."""

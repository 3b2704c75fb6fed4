"""Ray's input node with what servepipe needs to know about a graph's author: a preprocessor, and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.dag import DAGNode, InputNode

from servepipe.authoring.naming import Labels, labels_in
from servepipe.authoring.places import Place, here, user_frame
from servepipe.authoring.signatures import check_hook

__all__ = ["ServeInputNode"]


class ServeInputNode(InputNode):  # type: ignore[misc]  # Ray has no types here
    """The input of a graph of Ray's objects; used like ``ray.dag.InputNode``.

    Args:
        preprocessor: A sync or async function that takes the ``starlette.requests.Request`` of an HTTP call and returns
            the single argument.

    Raises:
        GraphError: ``preprocessor`` is not callable with one argument.
    """

    def __init__(self, *, preprocessor: Callable[[Any], Any] | None = None) -> None:
        place = here()
        check_hook(preprocessor, "preprocessor", place)
        super().__init__()
        self._preprocessor = preprocessor
        self._place: Place = place
        self._labels = Labels()

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self._labels = labels_in(user_frame(), DAGNode)

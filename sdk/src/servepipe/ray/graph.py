"""From a graph of Ray's objects to the light ones of `servepipe.authoring`, which then compile as if written so.

Each light object remembers the one of Ray's that it stands for: names are looked up by the identity of that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeVar

from ray.actor import ActorHandle
from ray.dag import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
)

from servepipe.authoring import nodes as light
from servepipe.authoring import steps, values
from servepipe.authoring.loader import unwrap
from servepipe.authoring.naming import Labels, labels_in
from servepipe.authoring.options import RAY, Fields, node_fields
from servepipe.authoring.places import Place
from servepipe.errors import GraphError
from servepipe.graph.ir import Attr
from servepipe.graph.values import MAX_DEPTH
from servepipe.ray.input_node import ServeInputNode

__all__ = ["convert"]

_A = TypeVar("_A", bound=values.Authored)


def convert(dag: Any, frame: FrameType, where: str) -> tuple[Any, Labels]:
    """The same graph of light objects.

    Args:
        dag: A node of Ray's graph, or a list, tuple or dict of these.
        frame: The function or module that calls `build`: its variables give names.
        where: ``file:line`` of that call. Ray does not record where a node was bound.

    Returns:
        What `servepipe.authoring.lower.lower` takes.

    Raises:
        GraphError: Something in it has no counterpart in a pipeline.
    """
    conversion = _Conversion(Place(frame.f_code.co_filename, frame.f_lineno), labels_in(frame, DAGNode), where)
    return conversion.of(dag), conversion.labels


class _ClassNode(light.ClassNode):
    _ray_node: object = None

    @property
    def _identity(self) -> object:
        return self._ray_node


class _CallStep(steps.CallStep):
    _ray_node: object = None

    @property
    def _identity(self) -> object:
        return self._ray_node


class _Conversion:
    def __init__(self, place: Place, labels: Labels, where: str) -> None:
        self.labels = labels
        self._place = place
        self._where = where
        self._done: dict[int, Any] = {}
        self._kept: list[object] = []  # ids stay valid as long as their objects live

    def of(self, dag: Any) -> Any:
        """What stands for ``dag``, after everything that it needs and all steps that nothing needs."""
        self._convert_all(_nodes_in(dag))
        inputs = [made for made in self._done.values() if isinstance(made, values.ServeInputNode)]
        needed = set(self._done)
        self._convert_all(self._steps_beside())
        if inputs:
            unneeded = [
                made for node, made in self._done.items() if node not in needed and isinstance(made, steps.Step)
            ]
            inputs[0]._inside.extend(unneeded)
        return self._value(dag)

    def _convert_all(self, roots: Iterator[Any]) -> None:
        """Postorder without recursion: graphs may be long."""
        for root in roots:
            stack: list[tuple[Any, Iterator[Any]]] = [(root, self._needs(root))]
            under_way = {id(root)}
            while stack:
                node, needs = stack[-1]
                for needed in needs:
                    if id(needed) in under_way:
                        raise self._error(f"a cycle of nodes through {self._shown(needed)}", "Take one of them out.")
                    if id(needed) not in self._done:
                        under_way.add(id(needed))
                        stack.append((needed, self._needs(needed)))
                        break
                else:
                    stack.pop()
                    under_way.discard(id(node))
                    if id(node) not in self._done:
                        self._kept.append(node)
                        self._done[id(node)] = self._convert(node)

    def _needs(self, node: Any) -> Iterator[Any]:
        if isinstance(node, InputAttributeNode):
            yield node._dag_input_node
            return
        yield from _nodes_in((list(node._bound_args), dict(node._bound_kwargs)))
        if isinstance(node, ClassMethodNode) and isinstance(node._parent_class_node, ClassNode):
            yield node._parent_class_node

    def _steps_beside(self) -> Iterator[Any]:
        """Steps of this graph that its output does not need: they must be found, to be refused.

        Ray links every node to those that use it, and a class node to its last call.
        """
        seen = set(self._done)
        waiting = [node for node in self._kept if isinstance(node, DAGNode)]
        for node in waiting:  # grows while it is read
            last_call = [node._last_call] if isinstance(node, ClassNode) else []
            previous = [node._prev_class_method_call] if isinstance(node, ClassMethodNode) else []
            for near in (*node._downstream_nodes, *last_call, *previous):
                if near is not None and id(near) not in seen and self._belongs(near):
                    seen.add(id(near))
                    waiting.append(near)
                    if isinstance(near, ClassMethodNode | FunctionNode):
                        yield near

    def _belongs(self, node: Any) -> bool:
        """Whether ``node`` reads no other graph's input: class nodes may be shared between graphs."""
        inputs = {id(root) for root in self._kept if isinstance(root, InputNode)}
        seen: set[int] = set()
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if isinstance(current, InputNode) and id(current) not in inputs:
                return False
            if id(current) not in seen and id(current) not in self._done:
                seen.add(id(current))
                waiting.extend(self._needs(current))
        return True

    def _convert(self, node: Any) -> Any:
        match node:
            case InputNode():
                return self._input(node)
            case InputAttributeNode():
                key = Attr(node._key) if node._accessor_method == "__getattr__" else node._key
                return self._placed(values.InputPart(self._done[id(node._dag_input_node)], (key,)))
            case ClassNode():
                return self._class_node(node)
            case ClassMethodNode():
                return self._method_call(node)
            case FunctionNode():
                function = light.RemoteFunction(unwrap(node._body), self._fields(node, node._bound_options), None)
                return self._step(node, function, None)
            case MultiOutputNode():
                return [self._value(value) for value in node._bound_args]
        raise self._error(
            f"a {type(node).__name__} of Ray has no counterpart in a pipeline",
            "Bind classes and functions, and use a MultiOutputNode for several outputs.",
        )

    def _input(self, node: Any) -> values.ServeInputNode:
        ours = isinstance(node, ServeInputNode)
        made: values.ServeInputNode = values.ServeInputNode(preprocessor=node._preprocessor if ours else None)
        made._place = node._place if ours else self._place
        if ours:
            made._labels = node._labels
        return made

    def _class_node(self, node: Any) -> light.ClassNode:
        fields = self._fields(node, node._bound_options)
        args, kwargs = self._arguments(node)
        made = _ClassNode(unwrap_class(node._body), args, kwargs, fields, None)
        made._ray_node = node
        return self._placed(made)

    def _method_call(self, node: Any) -> Any:
        parent = node._parent_class_node
        if isinstance(parent, ActorHandle):
            raise self._error(
                f"{self._shown(node)} is called on an actor that runs already",
                "Bind the class: Class.bind(...).method.bind(...); a pipeline makes its replicas itself.",
            )
        self._fields(node, node._bound_options)
        return self._step(node, self._done[id(parent)], node.get_method_name())

    def _step(self, node: Any, on: light.ClassNode | light.RemoteFunction, method: str | None) -> steps.CallStep:
        args, kwargs = self._arguments(node)
        light.check_call(on, method, args, kwargs, self._place)
        made = _CallStep(on, method, args, kwargs)
        made._ray_node = node
        return self._placed(made)

    def _arguments(self, node: Any) -> tuple[list[Any], dict[str, Any]]:
        return [self._value(value) for value in node._bound_args], {
            key: self._value(value) for key, value in node._bound_kwargs.items()
        }

    def _value(self, value: Any, depth: int = 0) -> Any:
        """``value`` with light nodes in place of Ray's."""
        if isinstance(value, DAGNode):
            return self._done[id(value)]
        if isinstance(value, values.Authored | light.Method | light.RemoteClass | light.RemoteFunction):
            raise self._error(
                f"{value!r} of servepipe is given to a .bind of Ray, which would take it for a constant",
                "Write `from servepipe.ray import ServeInputNode` in a graph of ray.remote objects.",
            )
        if depth > MAX_DEPTH:
            return value  # lowering says that it is too deep
        if type(value) in (list, tuple):
            return type(value)(self._value(item, depth + 1) for item in value)
        if type(value) is dict:
            return {key: self._value(item, depth + 1) for key, item in value.items()}
        return value

    def _fields(self, node: Any, options: dict[str, Any]) -> Fields:
        # Ray fills in some options with None.
        given = {name: value for name, value in options.items() if value is not None and not name.startswith("_")}
        if given.get("num_gpus") and given.get("max_calls") == 1:
            del given["max_calls"]  # Ray adds it to functions that ask for a GPU
        if "runtime_env" in given:
            given["runtime_env"] = _as_written(given["runtime_env"])
        rules = {} if isinstance(node, ClassMethodNode) else RAY
        return node_fields(given, rules, f"{self._shown(node)} in a pipeline", self._where)

    def _placed(self, made: _A) -> _A:
        made._place = self._place
        return made

    def _shown(self, node: Any) -> str:
        if isinstance(node, ClassMethodNode):
            return f"the method {node.get_method_name()!r}"
        body: Callable[..., Any] | None = (
            getattr(node, "_body", None) if isinstance(node, FunctionNode | ClassNode) else None
        )
        return getattr(unwrap_class(body), "__qualname__", "") or f"a {type(node).__name__}"

    def _error(self, what: str, fix: str) -> GraphError:
        return GraphError(what, where=self._where, fix=fix)


def _as_written(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime environment as the author wrote it: Ray has completed it in the meantime."""
    written = {name: value for name, value in runtime_env.items() if not name.startswith("_")}
    pip = written.get("pip")
    if isinstance(pip, Mapping) and pip == {"packages": pip.get("packages"), "pip_check": False}:
        written["pip"] = pip["packages"]
    return written


def unwrap_class(cls: Any) -> Any:
    """The class that the author wrote: Ray derives one of its own from it."""
    return getattr(cls, "__ray_actor_class__", cls)


def _nodes_in(value: Any) -> Iterator[Any]:
    return (leaf for leaf in values.leaves(value) if isinstance(leaf, DAGNode))

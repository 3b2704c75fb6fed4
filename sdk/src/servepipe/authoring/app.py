"""`build`: a graph as something to configure, write as a resource, run and deploy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from servepipe.authoring.lower import Lowered, UnusedStepWarning, lower
from servepipe.authoring.naming import NamingWarning, labels_in
from servepipe.authoring.options import INGRESS, NODE, Fields, did_you_mean, merged, node_fields
from servepipe.authoring.places import Place, here, user_frame, warn
from servepipe.authoring.runnable import Runnable
from servepipe.authoring.signatures import check_hook
from servepipe.authoring.values import Authored
from servepipe.errors import GraphError, NamingError

if TYPE_CHECKING:
    from servepipe.api.v1alpha1 import ServePipeline
    from servepipe.graph.calls import NodeDefinition
    from servepipe.graph.ir import Graph

__all__ = ["App", "Configurable", "build", "lowered_here", "warn_unused"]

_PIPELINE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,42}[a-z0-9])?\Z")


class Configurable:
    """A node or the ingress of an `App`: ``app.m1.set_options(num_replicas=3)``.

    Args:
        name: For errors.
        rules: The options that it takes.
        fields: What it starts with.
    """

    def __init__(self, name: str, rules: Mapping[str, Any], fields: Fields) -> None:
        self.name = name
        self._rules = rules
        self._fields = dict(fields)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("name", "_rules", "_fields"):
            raise GraphError(
                f"{self.name} has no attribute {name!r} to set",
                where=str(here()),
                fix=f"Write .set_options({name}=...).",
            )
        super().__setattr__(name, value)

    @property
    def options(self) -> Fields:
        """The options that were set, as fields of the resource."""
        return dict(self._fields)

    def set_options(self, **options: Any) -> None:
        """Set options by Ray's names (``num_replicas``, ``num_cpus``, ``max_ongoing_requests``...) or the resource's
        (``replicas``, ``resources``, ``upgrade``...); what is set already and not named stays.

        Raises:
            GraphError: An unknown option, with the closest known one, or an impossible value.
        """
        fields = node_fields(options, self._rules, self.name, here())
        self._fields = merged(self._fields, fields)

    def __repr__(self) -> str:
        return f"<{self.name} {self._fields}>"


class App(Runnable):
    """A built pipeline; nodes are attributes (``app.m1``, ``-`` written as ``_``) and items (``app["models-0"]``).

    Made by `build`.
    """

    def __init__(
        self,
        dag: Any,
        lowered: Lowered,
        name: str,
        ray_version: str | None,
        postprocessor: Callable[[Any], Any] | None,
        place: Place,
    ) -> None:
        super().__init__()
        self.dag = dag
        self.name = name
        self.postprocessor = postprocessor
        self.ingress = Configurable("the ingress", INGRESS, {})
        self.nodes = {
            node.name: Configurable(f"node {node.name!r}", NODE, node.fields) for node in lowered.nodes.values()
        }
        self._lowered = lowered
        self._ray_version = ray_version
        self._place = place

    @property
    def graph(self) -> Graph:
        """The compiled graph, without pre- and postprocessor."""
        return self._lowered.graph

    @property
    def preprocessor(self) -> Callable[[Any], Any] | None:
        """What turns an HTTP request into the graph's single argument."""
        return self._lowered.preprocessor

    @property
    def definitions(self) -> dict[str, NodeDefinition]:
        """The nodes with the code behind them and the options set by now, for running in this process."""
        return {name: node.definition(self.nodes[name].options) for name, node in self._lowered.nodes.items()}

    def __getitem__(self, name: str) -> Configurable:
        if name in self.nodes:
            return self.nodes[name]
        raise GraphError(
            f"the pipeline {self.name!r} has no node {name!r}", where=str(here()), fix=did_you_mean(name, self.nodes)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __getattr__(self, name: str) -> Configurable:
        if name.startswith("_"):
            raise AttributeError(name)
        node = self.nodes.get(name.replace("_", "-"))
        if node is not None:
            return node
        raise _UnknownNodeError(
            f"the pipeline {self.name!r} has no node {name!r}",
            where=str(here()),
            fix=did_you_mean(name.replace("_", "-"), self.nodes),
        )

    def __setattr__(self, name: str, value: object) -> None:
        if name.replace("_", "-") in self.__dict__.get("nodes", {}) or (name == "ingress" and name in self.__dict__):
            raise GraphError(
                f"{name} of the pipeline {self.name!r} cannot be replaced",
                where=str(here()),
                fix=f"Write app.{name}.set_options(...).",
            )
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name.replace("-", "_") for name in self.nodes)]

    def __repr__(self) -> str:
        return f"<App {self.name}: {', '.join(self.nodes)}>"

    def to_dict(self) -> dict[str, Any]:
        """The ``ServePipeline`` resource.

        Raises:
            GraphError: A step that nothing needs, something that another process could not import, more than the
                resource may hold.
            ResourceError: An option has a value that the resource does not take.
        """
        from servepipe.authoring.resource import to_resource

        return to_resource(self)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The resource as YAML, always the same bytes for the same sources.

        Args:
            path: A file to write it to. Nothing is written, and the result is empty, while the module is imported by
                ``servepipe compile`` or a replica.

        Raises:
            GraphError: As in `to_dict`.
            ResourceError: As in `to_dict`.
        """
        from servepipe.authoring.loader import importing
        from servepipe.authoring.resource import to_text

        if path is not None and importing():
            return ""
        text = to_text(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8", newline="\n")
        return text

    def _deployable(self) -> tuple[ServePipeline, Path | None]:
        from servepipe.authoring.resource import import_root_of, to_validated

        return to_validated(self), import_root_of(self)


class _UnknownNodeError(GraphError, AttributeError):
    """Also an AttributeError, so that ``hasattr`` works."""


def build(
    dag: Any,
    *,
    name: str | None = None,
    ray_version: str | None = None,
    postprocessor: Callable[[Any], Any] | None = None,
) -> App:
    """The pipeline that answers with ``dag``.

    Args:
        dag: A step, a part of one, or a list, tuple or dict of these; also a graph of Ray's own nodes.
        name: The pipeline's name; by default the module's.
        ray_version: The Ray to run on, e.g. ``"2.60.0"``; by default the one that the running servepipe pins.
        postprocessor: A sync or async function that turns the output into the HTTP answer.

    Raises:
        GraphError: The graph is not valid.
    """
    frame, place = user_frame(), here()
    check_hook(postprocessor, "postprocessor", place)
    lowered = lowered_here(dag)
    if lowered.unnamed:
        warn(
            f"no variable holds {_listed(lowered.unnamed)}: these names follow the order of binding, and one more node "
            'renames them. Assign them to variables or use .options(name="...").',
            NamingWarning,
        )
    warn_unused(lowered)
    return App(dag, lowered, _pipeline_name(name, frame, place), ray_version, postprocessor, place)


def lowered_here(dag: Any) -> Lowered:
    """``dag`` compiled, with names from the variables of the user's code that is being executed.

    Raises:
        GraphError: The graph is not valid.
    """
    frame, where = user_frame(), str(here())
    if _is_rays(dag):
        # By name: this layer must not depend on Ray, and where there is a node of Ray's, Ray is imported already.
        import importlib

        convert = importlib.import_module("servepipe.ray.graph").convert
        dag, labels = convert(dag, frame, where)
    else:
        labels = labels_in(frame, Authored)
    return lower(dag, labels, where)


def _is_rays(dag: Any) -> bool:
    items = [dag] if not isinstance(dag, list | tuple | dict) else list(dag.values() if isinstance(dag, dict) else dag)
    return any(base.__module__.startswith("ray.dag.") for item in items for base in type(item).__mro__)


def warn_unused(lowered: Lowered) -> None:
    """Warn about steps that compiling will refuse."""
    if lowered.unused:
        warn(f"the output does not need {_listed(lowered.unused)}; compiling refuses such steps", UnusedStepWarning)


def _listed(lines: tuple[str, ...]) -> str:
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return ", ".join(lines[:5]) + more


def _pipeline_name(name: str | None, frame: FrameType, place: Place) -> str:
    if name is None:
        module = frame.f_globals.get("__name__", "")
        file = frame.f_globals.get("__file__")
        if module in ("__main__", "__mp_main__"):
            # A session without a file cannot be compiled; it can still try its graph.
            module = Path(file).stem if file else "main"
        given = module.rpartition(".")[2]
        what, fix = f"the module's name {given!r}", 'Pass build(..., name="...").'
        name = re.sub("-+", "-", given.lower().replace("_", "-"))
    else:
        what, fix = f"the name {name!r}", "Use a-z, 0-9 and -, starting with a letter, at most 44 characters."
    if not isinstance(name, str) or not _PIPELINE_NAME.match(name):
        raise NamingError(f"{what} cannot be a pipeline's name", where=str(place), fix=fix)
    return name

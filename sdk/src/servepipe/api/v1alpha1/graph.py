"""``spec.graph``: written by compile, owned by the author.

These models give the graph its schema and its place in `kubectl explain`. What an expression inside ``args`` or
``then`` means is read by `servepipe.graph.wire`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from servepipe.api.v1alpha1.base import (
    PRESERVE,
    Digest,
    Duration,
    ImportPath,
    Json,
    JsonList,
    JsonObject,
    Model,
    NodeName,
    StepName,
    rule,
    validated,
)
from servepipe.graph import ir
from servepipe.graph.values import INT64
from servepipe.graph.wire import parse_graph

__all__ = [
    "MAX_STEPS",
    "BranchSpec",
    "CaseSpec",
    "GraphInput",
    "GraphResponse",
    "GraphSpec",
    "MapSpec",
    "SplitSpec",
    "StepSpec",
    "SwitchSpec",
]

#: The most steps that a graph may have: a bound of the API, so that its CEL rules stay within their budget.
MAX_STEPS = 128


def _scalar(value: Any) -> Any:
    if isinstance(value, bool | str) or (isinstance(value, int) and value in INT64):
        return value
    raise PydanticCustomError("scalar_type", "expected a string, a 64-bit integer or a boolean")


_When: TypeAlias = Annotated[Any, BeforeValidator(_scalar), Field(json_schema_extra=PRESERVE)]


class CaseSpec(Model):
    """One case of a switch."""

    when: _When
    """A string, an integer or a boolean; it is compared in type and value."""
    then: Json
    """The expression that is evaluated when it is equal."""


class SwitchSpec(Model):
    """Evaluates the first case that equals a value."""

    on: Json
    """The expression whose value is compared."""
    cases: Annotated[list[CaseSpec], Field(min_length=1, max_length=64)]
    """In the order in which they are compared."""
    default: Json = None
    """The expression for every other value. Without it such a value is an error of the step."""


class BranchSpec(Model):
    """One branch of a split."""

    weight: Annotated[int, Field(ge=0, le=100)]
    """Percentage of requests, or of values of `on`, that take this branch."""
    then: Json
    """The expression that is evaluated in this branch."""


class SplitSpec(Model):
    """Evaluates one branch, chosen by weight."""

    model_config = validated(
        rule("self.branches.map(b, b.weight).sum() == 100", "the weights of the branches must sum to 100")
    )

    branches: Annotated[list[BranchSpec], Field(min_length=1, max_length=16)]
    """The branches; their weights sum to 100."""
    on: Json = None
    """The same value always takes the same branch. Without it the branch is drawn for each request."""


class MapSpec(Model):
    """Evaluates an expression once per item of a list."""

    over: Json
    """The expression that gives the items."""
    each: Json
    """The expression for one item, {$item: [<name of this step>]} in it."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many items are under way at once. Default: all."""


class StepSpec(Model):
    """A named computation: a call of a node (`node`), or one of `switch`, `split`, `map`, `fallback`, `first`."""

    # CEL cannot see lists of free-form items (args, fallback, first): the rest is for `servepipe.api.problems`.
    model_config = validated(
        rule(
            "[has(self.node), has(self.switch), has(self.split), has(self.map)].filter(kind, kind).size() <= 1",
            "a step has one of node, switch, split, map, fallback, first",
        ),
        rule(
            "has(self.node) || !(has(self.method) || has(self.kwargs) || has(self.timeout) || has(self.retries))",
            "method, kwargs, timeout and retries belong to a step with a node",
        ),
    )

    name: StepName
    """Unique in the graph."""
    node: NodeName | None = None
    """The node that is called, a key of spec.nodes."""
    method: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The method that is called. Default: the object itself, or the function."""
    args: Annotated[JsonList, Field(max_length=256)] = Field(default_factory=list)
    """Positional arguments: constants, {$input: [...]}, {$step: ...}, {$item: ...}, {$node: ...}, lists and objects."""
    kwargs: JsonObject = Field(default_factory=dict)
    """Keyword arguments by name."""
    timeout: Duration | None = None
    """Bound of one attempt: 500ms, 30s, 1h30m. Default: only the request's own."""
    retries: Annotated[int, Field(ge=0, le=100)] = 0
    """Further attempts after a failed one. Default 0."""
    switch: SwitchSpec | None = None
    """Evaluates the first case that equals a value."""
    split: SplitSpec | None = None
    """Evaluates one branch, chosen by weight."""
    map: MapSpec | None = None
    """Evaluates an expression once per item of a list."""
    fallback: Annotated[JsonList, Field(min_length=1, max_length=64)] | None = None
    """Expressions; the next one is evaluated when the one before fails."""
    first: Annotated[JsonList, Field(min_length=1, max_length=64)] | None = None
    """Expressions that are evaluated at once; the first that succeeds wins and the others are cancelled."""


class GraphInput(Model):
    """How an HTTP request becomes the input."""

    preprocessor: ImportPath | None = None
    """"module:function" that receives the starlette Request; what it returns is the single argument."""
    code: Digest | None = None
    """Digest of the preprocessor's sources that compile saw. Default: not checked."""


class GraphResponse(Model):
    """How the output becomes an HTTP answer."""

    postprocessor: ImportPath | None = None
    """"module:function" that turns the output into the HTTP answer."""
    code: Digest | None = None
    """Digest of the postprocessor's sources that compile saw. Default: not checked."""


class GraphSpec(Model):
    """The compiled graph: steps that call nodes, and what the graph answers."""

    model_config = validated(
        rule("self.steps.all(s, self.steps.exists_one(t, t.name == s.name))", "the names of steps must be unique")
    )

    input: GraphInput | None = None
    """How an HTTP request becomes the input."""
    steps: Annotated[
        list[StepSpec],
        Field(max_length=MAX_STEPS, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ]
    """Every step stands after the steps that it refers to."""
    output: Json
    """The expression that the graph answers with; a list or an object of expressions for several outputs."""
    response: GraphResponse | None = None
    """How the output becomes an HTTP answer."""

    def to_ir(self) -> ir.Graph:
        """The graph as the interpreter knows it.

        Raises:
            ResourceError: An expression has the wrong form.
        """
        return parse_graph(self.to_json())

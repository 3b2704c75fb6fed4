"""What the tests of execution share: short ways to write a graph, and nodes that are told when to answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from servepipe.graph import ir
from servepipe.graph.calls import NodeDefinition
from servepipe.graph.inprocess import Runner

DEADLINE_S = 30.0


class Gates:
    """A node whose calls wait until they are let through, and that knows what became of each.

    Each call carries a key. ``open(key)`` lets it answer ``key``; ``open(key, error)`` lets it raise.
    """

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self._gates: dict[str, asyncio.Future[Any]] = {}

    async def wait(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.started[key] += 1
        self.arguments[key] = args
        try:
            return await asyncio.shield(self._gate(key))
        except asyncio.CancelledError:
            self.cancelled[key] += 1
            raise

    async def now(self, key: str, *args: Any) -> str:
        self.started[key] += 1
        self.arguments[key] = args
        return key

    async def fail(self, key: str, *args: Any) -> None:
        self.started[key] += 1
        raise ValueError(key)

    def open(self, key: str, error: Exception | None = None) -> None:
        if error is None:
            self._gate(key).set_result(key)
        else:
            self._gate(key).set_exception(error)

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():  # noqa: ASYNC110 - what is waited for knows no event
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None

    async def until_started(self, *keys: str) -> None:
        await self.until(f"{keys} started, but {dict(self.started)}", lambda: all(self.started[key] for key in keys))

    async def until_cancelled(self, *keys: str) -> None:
        await self.until(
            f"{keys} cancelled, but {dict(self.cancelled)}", lambda: all(self.cancelled[key] for key in keys)
        )

    def _gate(self, key: str) -> asyncio.Future[Any]:
        if key not in self._gates:
            self._gates[key] = asyncio.get_running_loop().create_future()
        return self._gates[key]


def step(name: str, *args: ir.Expr, node: str = "n", method: str | None = "wait", **more: Any) -> ir.Call:
    """A call of node ``n`` with the step's name as its first argument."""
    return ir.Call(name, node, method, (ir.Const(name), *args), **more)


def graph(*steps: ir.Step, output: ir.Expr | None = None) -> ir.Graph:
    """A graph that answers its last step."""
    return ir.Graph(steps, ir.StepRef(steps[-1].name) if output is None else output)


def listed(*names: str) -> ir.ListOf:
    return ir.ListOf(tuple(ir.StepRef(name) for name in names))


def definitions(nodes: Mapping[str, Any]) -> dict[str, NodeDefinition]:
    """Nodes from classes, functions or ready definitions."""
    return {
        name: node if isinstance(node, NodeDefinition) else NodeDefinition(name, node) for name, node in nodes.items()
    }


@pytest.fixture
def gates() -> Gates:
    return Gates()


@pytest.fixture
def make() -> SimpleNamespace:
    """``make.step``, ``make.graph``, ``make.listed``, ``make.definitions``."""
    return SimpleNamespace(step=step, graph=graph, listed=listed, definitions=definitions)


@pytest.fixture
def runner_of() -> Iterator[Callable[..., Runner]]:
    """Makes runners from a graph and nodes; they are closed after the test."""
    runners: list[Runner] = []

    def make_runner(of: ir.Graph, *, fakes: Mapping[str, Any] | None = None, **nodes: Any) -> Runner:
        runner = Runner(of, definitions(nodes), fakes)
        runners.append(runner)
        return runner

    yield make_runner
    for runner in runners:
        runner.reset()

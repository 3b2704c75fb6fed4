"""Random graphs mean in process what plain Python says they mean, and every step runs as often as it should."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import KINDS, Expected, RandomGraph, expect, random_graph

from servepipe.errors import RequestError
from servepipe.graph.background import background
from servepipe.graph.checks import Kind, problems
from servepipe.graph.failures import failed_step
from servepipe.graph.inprocess import Runner

GRAPHS = 2000
END_WITHIN_S = 30.0


def test_a_random_graph_means_what_plain_python_says() -> None:
    kinds: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    sizes: Counter[int] = Counter()

    @settings(
        max_examples=GRAPHS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**48), size=st.integers(1, 40))
    def check(seed: int, size: int) -> None:
        example = random_graph(seed, size)
        expected = run_and_compare(example)
        if (seed, size) not in seen:
            seen.add((seed, size))
            sizes[len(example.graph.steps)] += 1
            kinds.update(example.kinds)
            kinds["answer" if expected.ok else "failure"] += 1

    check()
    print(f"{len(seen)} graphs of {min(sizes)} to {max(sizes)} steps, {sum(n * c for n, c in sizes.items())} in all")
    for kind, count in sorted(kinds.items()):
        print(f"{count:8} {kind}")
    assert len(seen) >= GRAPHS
    assert (min(sizes), max(sizes)) == (1, 40)
    assert [kind for kind in KINDS if not kinds[kind]] == []


def test_a_random_graph_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Else a failure could not be replayed, and replicas could not import what the driver has written."""
    program = "import random_graphs; print(random_graphs.random_graph(7, 40).source, random_graphs.random_graph(7, 40))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1

    example = random_graph(7, 40)
    assert repr(example) in texts.pop()
    module = example.load(example.write(tmp_path))
    assert sys.modules.pop(example.module_name) is module
    assert module.reference(*example.args, **example.kwargs).ok


def run_and_compare(example: RandomGraph) -> Expected:
    module = example.load()
    expected = expect(example, module)
    definitions = example.definitions(module)
    assert [found for found in problems(example.graph, definitions) if found.kind is not Kind.UNUSED_STEP] == []
    runner = Runner(example.graph, definitions)
    runner.build()
    try:
        answer = runner.execute(example.args, example.kwargs)
    except (ValueError, RequestError) as error:
        assert not expected.ok
        assert failed_step(error).step in expected.failed_steps
        if isinstance(error, ValueError):
            assert str(error) == failed_step(error).step
    else:
        assert expected.ok
        assert answer == expected.value
    # Losers and the rest of what failed are cancelled; nothing goes on for a request that has been answered.
    background.run(lambda: nothing_hangs(module))
    counted = module.CALLS
    for key in counted.keys() | expected.most.keys():
        assert expected.least[key] <= counted[key] <= expected.most[key], key
    return expected


async def nothing_hangs(module: ModuleType) -> None:
    try:
        async with asyncio.timeout(END_WITHIN_S):
            while +module.HANGING:  # noqa: ASYNC110 - generated nodes know no event of ours
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"still running {END_WITHIN_S:g} s after the answer: {+module.HANGING}") from None

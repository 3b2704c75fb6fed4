"""Every kind of input, once for servepipe's objects and once for Ray's: the same graph must read the same values.

`ROWS` is the table; run as a script it prints what Ray itself answers to each row that it accepts, and to the diamond.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Row:
    """``graph(kit, input)`` binds the output; ``kit`` has ``collect``, ``pair``, ``Scale``."""

    name: str
    graph: Callable[[Any, Any], Any]
    args: tuple[Any, ...]
    expected: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    ray: bool = True


def collect(*args: Any, **kwargs: Any) -> list[Any]:
    return [*args, *kwargs.values()]


def pair(x: Any) -> dict[str, Any]:
    return {"same": x, "both": [x, x]}


def parts_of(data: Any) -> list[Any]:
    return [data[0], data[1], data["k"]]


class Scale:
    def __init__(self, factor: int, *, offset: int = 0) -> None:
        self.factor = factor
        self.offset = offset

    def forward(self, x: int) -> int:
        return self.factor * x + self.offset

    async def later(self, x: int) -> int:
        return self.factor * x


def person(name: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name)


ROWS = [
    Row("the only argument", lambda kit, i: kit.collect.bind(i), (5,), [5]),
    Row("a falsy argument", lambda kit, i: kit.collect.bind(i), (0,), [0]),
    Row("None", lambda kit, i: kit.collect.bind(i), (None,), [None]),
    Row("index of a list", lambda kit, i: kit.collect.bind(i[0], i[2]), ([1, 2, 3],), [1, 3]),
    Row("negative index", lambda kit, i: kit.collect.bind(i[-1]), ([1, 2, 3],), [3]),
    Row("key of a dict", lambda kit, i: kit.collect.bind(i["k"]), ({"k": 7},), [7]),
    Row("attribute of an object", lambda kit, i: kit.collect.bind(i.name), (person("Ada"),), ["Ada"]),
    Row("attribute of a mapping is its key", lambda kit, i: kit.collect.bind(i.k), ({"k": 7},), [7], ray=False),
    Row("several positionals", lambda kit, i: kit.collect.bind(i[1], i[0]), (1, 2), [2, 1]),
    Row("one keyword by key", lambda kit, i: kit.collect.bind(i["k"]), (), [4], {"k": 4}),
    Row("one keyword by attribute", lambda kit, i: kit.collect.bind(i.k), (), [4], {"k": 4}),
    Row("positional and keyword", lambda kit, i: kit.collect.bind(i[0], i.k), (1,), [1, 2], {"k": 2}),
    Row("all arguments at once", lambda kit, i: kit.parts_of.bind(i), (1, 2), [1, 2, 3], {"k": 3}),
    Row("nested", lambda kit, i: kit.collect.bind(i[0].name["x"]), ([person({"x": 9})],), [9], ray=False),
    Row("nested in one of several", lambda kit, i: kit.collect.bind(i[1]["x"][0]), (0, {"x": [8]}), [8], ray=False),
    Row("inside a list", lambda kit, i: kit.collect.bind([i[0], 5, [i[1]]]), (1, 2), [[1, 5, [2]]]),
    Row("inside a tuple", lambda kit, i: kit.collect.bind((i[0], 5)), (1, 2), [(1, 5)]),
    Row(
        "inside a dict",
        lambda kit, i: kit.collect.bind({"a": i[0], "b": {"c": i[1]}}),
        (1, 2),
        [{"a": 1, "b": {"c": 2}}],
    ),
    Row("as a keyword argument", lambda kit, i: kit.collect.bind(x=i[0], y=i[1]), (1, 2), [1, 2]),
    Row("to a method", lambda kit, i: kit.Scale.bind(3).forward.bind(i), (5,), 15),
    Row("to an async method", lambda kit, i: kit.Scale.bind(3).later.bind(i), (5,), 15),
    Row("constructor keywords", lambda kit, i: kit.Scale.bind(3, offset=1).forward.bind(x=i), (5,), 16),
    Row(
        "a step used twice",
        lambda kit, i: (lambda same: kit.collect.bind(same, x=same))(kit.Scale.bind(3).forward.bind(i)),
        (5,),
        [15, 15],
    ),
    Row("a key of an output", lambda kit, i: kit.collect.bind(kit.pair.bind(i)["same"]), (5,), [5], ray=False),
    Row("deeper in an output", lambda kit, i: kit.collect.bind(kit.pair.bind(i)["both"][1]), (5,), [5], ray=False),
]


def kit_of(remote: Callable[[Any], Any]) -> SimpleNamespace:
    """The functions and the class above, wrapped by one library's ``remote``."""
    wrapped = {plain.__name__: remote(plain) for plain in (collect, pair, parts_of, Scale)}
    return SimpleNamespace(**wrapped)


def answers_of_ray() -> dict[str, Any]:
    """For each row what Ray's own execution of the graph gives."""
    import warnings

    import ray

    from servepipe.errors import GraphError
    from servepipe.ray import ServeInputNode, build

    answers: dict[str, Any] = {}
    kit = kit_of(ray.remote)
    for row in ROWS:
        if not row.ray:
            continue
        with ServeInputNode() as i:
            output = row.graph(kit, i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray deprecates execute
            answers[row.name] = ray.get(output.execute(*row.args, **row.kwargs))
            # Executing must not make Ray's copies of nodes look like unused steps.
            answers[f"{row.name}, compiled"] = build(output, name="row").execute(*row.args, **row.kwargs)
    actor = kit.Scale.remote(1)
    with ServeInputNode() as i:
        output = actor.forward.bind(i)
    try:
        build(output)
    except GraphError as error:
        answers["actor"] = error.what
    return answers


def main() -> None:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    sys.path.insert(0, sys.argv[1])
    import diamond_ray

    answers = answers_of_ray() | {"diamond": ray.get(diamond_ray.ray_dag.execute(1, 2, 3))}
    print(json.dumps(answers))
    ray.shutdown()


if __name__ == "__main__":
    main()

"""What runs, when, how often, and what is cancelled. Nodes are gates that the test opens: no timing is assumed."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
import time
import weakref
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from servepipe.errors import BadRequestError, NodeError, RequestError, StepTimeoutError
from servepipe.graph import choices, ir
from servepipe.graph.calls import RequestContext, current_request
from servepipe.graph.failures import failed_step
from servepipe.graph.interpreter import run
from servepipe.graph.ir import Const, Fallback, First, InputRef, ItemRef, ListOf, Map, Split, StepRef, Switch
from servepipe.graph.program import Program


class Direct:
    """A caller with one object per node."""

    def __init__(self, **nodes: Any) -> None:
        self.nodes = nodes

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        return await getattr(self.nodes[node], method or "__call__")(*args, **kwargs)


async def answer(graph: ir.Graph, node: Any, *args: Any, context: RequestContext | None = None, **kwargs: Any) -> Any:
    return await run(Program(graph), args, kwargs, Direct(n=node), context or RequestContext())


def start(graph: ir.Graph, node: Any, *args: Any, context: RequestContext | None = None) -> asyncio.Task[Any]:
    return asyncio.create_task(answer(graph, node, *args, context=context))


async def test_independent_steps_run_at_the_same_time(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("a"), make.step("b"), make.step("c", StepRef("a"), StepRef("b")), output=make.listed("a", "b", "c")
    )
    task = start(graph, gates)

    await gates.until_started("a", "b")
    gates.open("b")
    gates.open("a")
    await gates.until_started("c")
    gates.open("c")

    assert await task == ["a", "b", "c"]
    assert gates.arguments["c"] == ("a", "b")


async def test_a_step_that_several_use_runs_once(gates: Any, make: SimpleNamespace) -> None:
    users = [make.step(f"user-{number}", StepRef("shared"), method="now") for number in range(5)]
    graph = make.graph(
        make.step("shared", method="now"), *users, output=make.listed("shared", *(user.name for user in users))
    )

    await answer(graph, gates)

    assert gates.started["shared"] == 1
    assert sum(gates.started.values()) == 6


@pytest.mark.parametrize(
    ("value", "taken"),
    [("image", "a"), (1, "b"), (True, "c"), (1.0, "d"), ("other", "d"), (None, "d"), ([1], "d"), (2**70, "d")],
)
async def test_a_switch_compares_with_type_and_runs_only_its_branch(
    gates: Any, make: SimpleNamespace, value: Any, taken: str
) -> None:
    steps = [make.step(name, method="now") for name in "abcd"]
    cases = (("image", StepRef("a")), (1, StepRef("b")), (True, StepRef("c")))
    graph = make.graph(*steps, Switch("s", InputRef(), cases, StepRef("d")))

    assert await answer(graph, gates, value) == taken
    assert gates.started == {taken: 1}


async def test_a_switch_without_a_fitting_case_names_value_and_cases(make: SimpleNamespace) -> None:
    graph = make.graph(Switch("kind", InputRef(), (("image", Const(1)), (2, Const(2)))))

    with pytest.raises(RequestError, match=r"switch kind has no case for 'x+\.\.\. \(str\).*'image', 2") as caught:
        await answer(graph, None, "x" * 100)

    assert failed_step(caught.value).step == "kind"


async def test_a_split_by_value_always_takes_the_same_branch(make: SimpleNamespace) -> None:
    graph = make.graph(Split("ab", ((30, Const("a")), (50, Const("b")), (20, Const("c"))), InputRef()))
    users = [f"user-{number}" for number in range(400)]

    taken = [await answer(graph, None, user) for user in users]

    assert taken == [await answer(graph, None, user) for user in users]
    shares = [taken.count(branch) / len(users) for branch in "abc"]
    assert shares == pytest.approx([0.3, 0.5, 0.2], abs=0.08)
    # For ever: these may not change with a new version.
    assert [choices.bucket_of("ab", value) for value in ("user-1", 7, None, {"b": [1.5], "a": "é"})] == BUCKETS


BUCKETS = [71, 84, 84, 3]


async def test_a_split_without_a_value_draws_for_each_request(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make.graph(Split("canary", ((90, Const("old")), (0, Const("never")), (10, Const("new")))))
    drawn = iter([0, 89, 90, 99])
    monkeypatch.setattr(choices.random, "randrange", lambda _: next(drawn))

    assert [await answer(graph, None) for _ in range(4)] == ["old", "old", "new", "new"]


async def test_a_split_cannot_hash_what_is_not_json(make: SimpleNamespace) -> None:
    graph = make.graph(Split("ab", ((50, Const("a")), (50, Const("b"))), InputRef()))

    with pytest.raises(RequestError, match="split ab cannot hash a value of type object"):
        await answer(graph, None, object())


async def test_a_map_keeps_order_and_runs_what_does_not_depend_on_the_item_once(
    gates: Any, make: SimpleNamespace
) -> None:
    class Node:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        async def each(self, item: int, once: str) -> Any:
            self.calls.append(item)
            await asyncio.sleep(0)
            return [item, once]

        async def once(self) -> str:
            self.calls.append("once")
            return "o"

    node = Node()
    graph = make.graph(
        ir.Call("once", "n", "once"),
        ir.Call("each", "n", "each", (ItemRef("m", ("v",)), StepRef("once"))),
        Map("m", InputRef(), StepRef("each")),
    )

    assert await answer(graph, node, ({"v": v} for v in range(3))) == [[0, "o"], [1, "o"], [2, "o"]]
    assert sorted(map(str, node.calls)) == ["0", "1", "2", "once"]
    assert await answer(graph, node, []) == []


async def test_maps_inside_maps_see_both_items(make: SimpleNamespace) -> None:
    class Node:
        async def pair(self, outer: Any, inner: Any) -> Any:
            return (outer, inner)

    graph = make.graph(
        ir.Call("pair", "n", "pair", (ItemRef("outer", (0,)), ItemRef("inner"))),
        Map("inner", ItemRef("outer", (1,)), StepRef("pair")),
        Map("outer", InputRef(), StepRef("inner")),
    )

    assert await answer(graph, Node(), [["a", [1, 2]], ["b", []], ["c", [3]]]) == [
        [("a", 1), ("a", 2)],
        [],
        [("c", 3)],
    ]


async def test_a_step_that_reads_only_the_inner_item_runs_once_for_each(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        ir.Call("each", "n", "now", (ItemRef("inner"),)),
        Map("inner", ItemRef("outer"), StepRef("each")),
        Map("outer", InputRef(), StepRef("inner")),
    )

    assert await answer(graph, gates, ["ab", "", "a"]) == [["a", "b"], [], ["a"]]
    assert gates.started == {"a": 2, "b": 1}


async def test_a_map_runs_at_most_as_many_items_as_it_may(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        ir.Call("each", "n", "wait", (ItemRef("m"),)), Map("m", InputRef(), StepRef("each"), concurrency=2)
    )
    task = start(graph, gates, ["a", "b", "c"])

    await gates.until_started("a", "b")
    assert not gates.started["c"]
    gates.open("b")
    await gates.until_started("c")
    gates.open("a")
    gates.open("c")

    assert await task == ["a", "b", "c"]


async def test_a_failing_item_cancels_the_others_and_starts_no_more(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        ir.Call("each", "n", "wait", (ItemRef("m"),)), Map("m", InputRef(), StepRef("each"), concurrency=2)
    )
    task = start(graph, gates, ["a", "b", "c"])
    await gates.until_started("a", "b")

    gates.open("a", ValueError("a"))

    with pytest.raises(ValueError, match="a"):
        await task
    await gates.until_cancelled("b")
    assert not gates.started["c"]


async def test_a_map_over_what_cannot_be_iterated_over_says_so(make: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match="step m maps over int, which cannot be iterated over") as caught:
        await answer(make.graph(Map("m", InputRef(), ItemRef("m"))), None, 5)
    assert failed_step(caught.value).step == "m"


async def test_fallback_tries_one_after_the_other(gates: Any, make: SimpleNamespace) -> None:
    steps = [make.step("a", method="fail"), make.step("b", method="now"), make.step("c", method="now")]
    options = (StepRef("a"), StepRef("b"), StepRef("c"))

    assert await answer(make.graph(*steps, Fallback("f", options)), gates) == "b"
    assert gates.started == {"a": 1, "b": 1}


async def test_the_error_of_the_last_option_is_the_error_of_a_fallback(gates: Any, make: SimpleNamespace) -> None:
    steps = [make.step("a", method="fail"), make.step("b", method="fail")]

    with pytest.raises(ValueError, match="b") as caught:
        await answer(make.graph(*steps, Fallback("f", (StepRef("a"), StepRef("b")))), gates)
    assert failed_step(caught.value) == ("b", "n", "fail")


async def test_the_first_that_succeeds_wins_and_the_others_are_cancelled(gates: Any, make: SimpleNamespace) -> None:
    steps = [make.step("a"), make.step("b", method="fail"), make.step("c")]
    graph = make.graph(*steps, First("f", (StepRef("a"), StepRef("b"), StepRef("c"))))
    task = start(graph, gates)
    await gates.until_started("a", "b", "c")

    gates.open("c")

    assert await task == "c"
    await gates.until_cancelled("a")


async def test_first_fails_only_when_all_have_failed(gates: Any, make: SimpleNamespace) -> None:
    steps = [make.step("a"), make.step("b", method="fail")]
    task = start(make.graph(*steps, First("f", (StepRef("a"), StepRef("b")))), gates)
    await gates.until_started("a", "b")
    assert not task.done()

    gates.open("a", ValueError("a"))

    with pytest.raises(ValueError, match="b"):  # the last in the order in which they are written
        await task


async def test_a_loser_of_first_that_somebody_else_needs_goes_on(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("shared"),
        make.step("winner"),
        make.step("user", StepRef("shared")),
        First("f", (StepRef("shared"), StepRef("winner"))),
        output=make.listed("f", "user"),
    )
    task = start(graph, gates)
    await gates.until_started("shared", "winner")

    gates.open("winner")
    gates.open("shared")
    gates.open("user")

    assert await task == ["winner", "user"]
    assert not gates.cancelled
    assert gates.started["shared"] == 1


async def test_a_step_that_an_undecided_fallback_may_need_is_not_run_twice(gates: Any, make: SimpleNamespace) -> None:
    """Its only user fails, but the fallback's second option uses it too: it goes on, and does not start again."""
    graph = make.graph(
        make.step("shared"),
        make.step("bad"),
        make.step("both", StepRef("shared"), StepRef("bad"), method="now"),
        make.step("plan-b"),
        Fallback("f", (StepRef("both"), StepRef("plan-b"), StepRef("shared"))),
    )
    task = start(graph, gates)
    await gates.until_started("shared", "bad")

    gates.open("bad", ValueError("bad"))
    await gates.until_started("plan-b")
    assert not gates.cancelled
    gates.open("plan-b", ValueError("plan-b"))
    gates.open("shared")

    assert await task == "shared"
    assert gates.started == {"shared": 1, "bad": 1, "plan-b": 1}


async def test_a_step_that_a_decided_switch_does_not_need_is_cancelled(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("shared"),
        make.step("winner", method="now"),
        make.step("kind"),
        make.step("slow"),
        First("f", (StepRef("shared"), StepRef("winner"))),
        Switch("s", StepRef("kind"), (("x", StepRef("shared")),), StepRef("slow")),
        output=make.listed("f", "s"),
    )
    task = start(graph, gates)
    await gates.until_started("shared", "winner", "kind")
    assert not gates.cancelled  # the switch may still want it

    gates.open("kind")

    await gates.until_cancelled("shared")
    gates.open("slow")
    assert await task == ["winner", "slow"]


async def test_a_failure_cancels_the_rest_of_the_request(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(make.step("a"), make.step("b"), make.step("c", StepRef("a")), output=make.listed("b", "c"))
    task = start(graph, gates)
    await gates.until_started("a", "b")

    gates.open("b", ValueError("b"))

    with pytest.raises(ValueError, match="b"):
        await task
    await gates.until_cancelled("a")
    assert not gates.started["c"]


async def test_a_caller_that_leaves_cancels_everything(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("a"),
        make.step("b"),
        Fallback("f", (StepRef("a"), Const("never"))),
        ir.Call("each", "n", "wait", (ItemRef("m"),)),
        Map("m", Const(["c", "d"]), StepRef("each")),
        output=make.listed("f", "b", "m"),
    )
    task = start(graph, gates)
    await gates.until_started("a", "b", "c", "d")

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await gates.until_cancelled("a", "b", "c", "d")


async def test_a_timeout_bounds_one_attempt_and_names_the_step(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(make.step("slow", timeout_s=0.01, retries=2))

    with pytest.raises(StepTimeoutError, match=r"step slow \(node n\) took longer than 0.01 s") as caught:
        await answer(graph, gates)

    assert (caught.value.step, caught.value.node, caught.value.status) == ("slow", "n", 504)
    assert gates.started == {"slow": 3}
    assert gates.cancelled == {"slow": 3}


async def test_a_timeout_of_the_nodes_own_is_not_the_steps(make: SimpleNamespace) -> None:
    class Node:
        async def f(self) -> None:
            raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await answer(make.graph(ir.Call("s", "n", "f", timeout_s=60)), Node())


async def test_retries_call_again_until_it_works(make: SimpleNamespace) -> None:
    class Node:
        calls = 0

        async def flaky(self, values: list[int]) -> Any:
            self.calls += 1
            values.append(self.calls)  # an attempt does not see what the one before did to its arguments
            if self.calls < 3:
                raise ConnectionError(self.calls)
            return values

    graph = make.graph(ir.Call("s", "n", "flaky", (Const([0]),), retries=2))

    assert await answer(graph, Node()) == [0, 3]
    with pytest.raises(ConnectionError, match="2"):
        await answer(make.graph(ir.Call("s", "n", "flaky", (Const([]),), retries=1)), Node())


async def test_the_deadline_of_the_request_bounds_everything(gates: Any, make: SimpleNamespace) -> None:
    """A fallback does not catch it: there is no time for the other option."""
    graph = make.graph(make.step("slow"), make.step("other"), Fallback("f", (StepRef("slow"), StepRef("other"))))

    with pytest.raises(StepTimeoutError, match=r"ran out of time in step slow \(node n\)") as caught:
        await answer(graph, gates, context=RequestContext(deadline=time.time() + 0.01))

    assert failed_step(caught.value).step == "slow"
    await gates.until_cancelled("slow")
    assert not gates.started["other"]


async def test_an_exception_reaches_the_caller_as_itself(make: SimpleNamespace) -> None:
    error = LookupError("the model is lost")

    class Node:
        async def forward(self) -> None:
            raise error

    graph = make.graph(ir.Call("m1-output", "n", "forward"), make.step("user", StepRef("m1-output")))
    for _ in range(2):  # the notes of an exception that is raised again do not grow
        with pytest.raises(LookupError) as caught:
            await answer(graph, Node())

    assert caught.value is error
    assert error.__notes__ == ["in step m1-output, calling n.forward"]
    assert failed_step(error) == ("m1-output", "n", "forward")
    assert "forward" in [entry.name for entry in caught.traceback]


async def test_what_would_end_the_event_loop_becomes_an_error(make: SimpleNamespace) -> None:
    class Node:
        async def leave(self) -> None:
            raise SystemExit(3)

        async def cancel(self) -> None:
            raise asyncio.CancelledError

    for method, told in (("leave", "SystemExit: 3"), ("cancel", "CancelledError: the call was cancelled")):
        with pytest.raises(NodeError, match=told) as caught:
            await answer(make.graph(ir.Call("s", "n", method)), Node())
        assert failed_step(caught.value).step == "s"
        assert method in caught.value.remote_traceback


async def test_code_that_ignores_being_cancelled_changes_nothing(gates: Any, make: SimpleNamespace) -> None:
    class Node:
        async def stubborn(self) -> str:
            await gates.now("stubborn")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return await gates.now("ended")

        async def stubborn_and_bad(self) -> None:
            try:
                await self.stubborn()
            finally:
                raise ValueError("too late")

        async def wait(self, key: str) -> Any:
            return await gates.wait(key)

    for method in ("stubborn", "stubborn_and_bad"):
        gates.started.clear()
        graph = make.graph(
            ir.Call("loser", "n", method),
            make.step(f"winner-{method}"),
            First("f", (StepRef("loser"), StepRef(f"winner-{method}"))),
        )
        task = start(graph, Node())
        await gates.until_started("stubborn")
        gates.open(f"winner-{method}")
        assert await task == f"winner-{method}"
        await gates.until_started("ended")


async def test_the_request_is_known_to_the_code_that_runs_for_it(make: SimpleNamespace) -> None:
    class Node:
        async def who(self) -> Any:
            return current_request.get()

    context = RequestContext("r1", None, {"n": "abc"})

    assert await answer(make.graph(ir.Call("s", "n", "who")), Node(), context=context) is context
    assert current_request.get() is None


async def test_an_event_loop_that_shuts_down_ends_the_request(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(make.step("a"), make.step("b"), Fallback("f", (StepRef("a"), StepRef("b"))))
    task = start(graph, gates)
    await gates.until_started("a")

    for each in asyncio.all_tasks() - {asyncio.current_task(), task}:
        each.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gates.started["b"]


async def test_inputs_of_branches_are_read_only_where_the_branch_is_taken(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("text", InputRef(("text",)), method="now"),
        make.step("image", InputRef(("image",)), method="now"),
        Switch("s", InputRef(("kind",)), (("text", StepRef("text")), ("image", StepRef("image")))),
    )

    assert await answer(graph, gates, {"kind": "text", "text": "hello"}) == "text"
    with pytest.raises(BadRequestError, match=r"the graph reads input\['image'\]") as caught:
        await answer(graph, gates, {"kind": "image"})
    assert (caught.value.status, caught.value.step) == (422, "image")
    assert gates.started == {"text": 1}


async def test_a_part_that_an_output_does_not_have_fails_the_step_that_reads_it(
    gates: Any, make: SimpleNamespace
) -> None:
    for reader in (
        make.step("reader", StepRef("a", ("k", 0))),
        Switch("reader", StepRef("a", ("k",)), ((1, Const(1)),)),
        Map("reader", StepRef("a", (ir.Attr("items_"),)), Const(1)),
        Map("reader", Const([{}]), ItemRef("reader", ("k",))),
    ):
        graph = make.graph(make.step("a", method="now"), reader, output=make.listed("a", "reader"))
        with pytest.raises(RequestError, match="there is no value") as caught:
            await answer(graph, gates)
        assert failed_step(caught.value).step == "reader"
    with pytest.raises(RequestError, match=r"there is no value\['k'\] in what step a returned: str \(TypeError"):
        await answer(make.graph(make.step("a", method="now"), output=StepRef("a", ("k",))), gates)


async def test_containers_are_rebuilt_and_constants_are_not_shared(make: SimpleNamespace) -> None:
    class Node:
        async def change(self, value: Any) -> Any:
            value["list"].append("changed")
            return value

    expr = ir.DictOf((("list", Const([1, {"a": (2,)}])), ("tuple", ir.TupleOf((InputRef(), ListOf(()))))))
    graph = make.graph(ir.Call("s", "n", "change", (expr,)))

    for _ in range(2):
        assert await answer(graph, Node(), 5) == {"list": [1, {"a": (2,)}, "changed"], "tuple": (5, [])}


async def test_long_and_wide_graphs_need_no_recursion(make: SimpleNamespace) -> None:
    class Node:
        async def add(self, *values: int) -> int:
            return sum(values) + 1

    def call(name: str, *refs: str) -> ir.Call:
        return ir.Call(name, "n", "add", tuple(StepRef(ref) for ref in refs))

    chain = make.graph(call("s0"), *(call(f"s{n}", f"s{n - 1}") for n in range(1, 1500)))
    assert await answer(chain, Node()) == 1500

    wide = make.graph(*(call(f"s{n}") for n in range(1000)), call("all", *(f"s{n}" for n in range(1000))))
    assert await answer(wide, Node()) == 1001

    switches: list[ir.Step] = [call("s0")]
    for n in range(1, 1500):
        kind = (Switch, Fallback, First, Map)[n % 4]
        below = StepRef(f"s{n - 1}")
        if kind is Switch:
            switches.append(Switch(f"s{n}", Const(1), ((1, below),)))
        elif kind is Map:
            switches.append(Map(f"s{n}", Const([1]), ListOf((ItemRef(f"s{n}"), below))))
        else:
            switches.append(kind(f"s{n}", (below,)))
    nested = await answer(make.graph(*switches), Node())
    depth = 0
    while isinstance(nested, list):
        nested, depth = nested[0][1], depth + 1
    assert (nested, depth) == (1, 375)

    deep: ir.Expr = InputRef()
    for _ in range(3000):
        deep = ListOf((deep,))
    value = await answer(make.graph(ir.Call("s", "n", "first", (deep,))), _First(), 7)
    assert value == 7


class _First:
    async def first(self, value: Any) -> Any:
        while isinstance(value, list):
            (value,) = value
        return value


async def test_a_failure_at_the_end_of_a_long_chain_needs_no_recursion(gates: Any, make: SimpleNamespace) -> None:
    chain: list[ir.Step] = [make.step("s0", method="fail")]
    chain += [make.step(f"s{n}", StepRef(f"s{n - 1}"), method="now") for n in range(1, 1500)]

    with pytest.raises(ValueError, match="s0"):
        await answer(make.graph(*chain), gates)

    slow: list[ir.Step] = [make.step("s0")]
    slow += [make.step(f"s{n}", StepRef(f"s{n - 1}"), method="now") for n in range(1, 1500)]
    task = start(make.graph(*slow), gates)
    await gates.until(f"s0 of the second, but {dict(gates.started)}", lambda: gates.started["s0"] == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gates.until_cancelled("s0")


async def test_what_is_dropped_while_the_news_goes_round_does_not_start(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("x", method="now"),
        make.step("after", StepRef("x"), method="now"),
        First("f", (StepRef("after"), StepRef("x"))),
    )

    assert await answer(graph, gates) == "x"
    assert gates.started == {"x": 1}


async def test_outcomes_are_kept_for_whoever_needs_them_later(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(
        make.step("good", method="now"),
        make.step("bad", method="fail"),
        make.step("never", StepRef("bad"), method="now"),
        Fallback("f", (StepRef("bad"), StepRef("never"), ListOf((StepRef("good"), StepRef("bad"))), StepRef("good"))),
        make.step("then", StepRef("f"), StepRef("good"), method="now"),
    )

    assert await answer(graph, gates) == "then"
    assert gates.started == {"good": 1, "bad": 1, "then": 1}
    assert gates.arguments["then"] == ("good", "good")


@pytest.mark.parametrize("kind", ["map", "switch", "split"])
async def test_a_combinator_that_is_needed_again_goes_on_where_it_was(
    gates: Any, make: SimpleNamespace, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user fails, but the fallback's second option needs it too: nothing of it runs twice or is drawn anew."""
    draws = iter([10])
    monkeypatch.setattr(choices.random, "randrange", lambda _: next(draws))
    combinator: ir.Step = {
        "map": Map("c", InputRef(), StepRef("slow"), concurrency=2),
        "switch": Switch("c", InputRef(), ((1, Const(None)),), StepRef("slow")),
        "split": Split("c", ((50, StepRef("slow")), (50, Const(None)))),
    }[kind]
    slow = ir.Call("slow", "n", "wait", (ItemRef("c"),)) if kind == "map" else make.step("slow")
    graph = make.graph(
        slow,
        combinator,
        make.step("bad"),
        make.step("both", StepRef("c"), StepRef("bad"), method="now"),
        Fallback("f", (StepRef("both"), StepRef("c"))),
    )
    names = ["a", "b", "x"] if kind == "map" else ["slow"]
    task = start(graph, gates, (name for name in names))  # an iterator can be read only once
    await gates.until_started("bad", *names[:2])
    if kind == "map":
        gates.open("a")
        await gates.until_started("x")

    gates.open("bad", ValueError("bad"))
    await asyncio.sleep(0)
    for name in names[kind == "map" :]:
        gates.open(name)

    assert await task == (names if kind == "map" else "slow")
    assert not gates.cancelled
    assert gates.started == dict.fromkeys(["bad", *names], 1)


async def test_items_do_not_keep_each_others_steps_alive(gates: Any, make: SimpleNamespace) -> None:
    """In each item a switch may come back to a loser; the item whose switch has decided lets its own go."""
    graph = make.graph(
        ir.Call("loser", "n", "wait", (ItemRef("m", ("loser",)),)),
        ir.Call("kind", "n", "wait", (ItemRef("m", ("kind",)),)),
        ir.Call("winner", "n", "wait", (ItemRef("m", ("winner",)),)),
        First("g", (StepRef("loser"), StepRef("winner"))),
        Switch("s", StepRef("kind"), (("kind-1", StepRef("loser")),), StepRef("winner")),
        Map("m", InputRef(), ListOf((StepRef("g"), StepRef("s")))),
    )
    items = [{key: f"{key}-{number}" for key in ("loser", "kind", "winner")} for number in (1, 2)]
    task = start(graph, gates, items)
    await gates.until_started("loser-1", "loser-2", "winner-1", "winner-2", "kind-1", "kind-2")

    gates.open("winner-1")
    gates.open("winner-2")
    gates.open("kind-2")
    await gates.until_cancelled("loser-2")
    assert not gates.cancelled["loser-1"]
    gates.open("kind-1")
    gates.open("loser-1")

    assert await task == [["winner-1", "loser-1"], ["winner-2", "winner-2"]]


async def test_an_outer_step_stays_while_an_item_may_need_it(gates: Any, make: SimpleNamespace) -> None:
    """The step lives outside of the map: first the list is not there yet, then the item that needs it is to come."""
    graph = make.graph(
        make.step("shared"),
        make.step("winner", method="now"),
        First("f", (StepRef("shared"), StepRef("winner"))),
        make.step("ab"),
        ir.Call("slow", "n", "wait", (Const("slow"), ItemRef("m"))),
        Switch("s", ItemRef("m"), (("b", StepRef("shared")),), StepRef("slow")),
        Map("m", StepRef("ab"), StepRef("s"), concurrency=1),
        output=make.listed("f", "m"),
    )
    task = start(graph, gates)
    await gates.until_started("shared", "winner", "ab")
    assert not gates.cancelled
    gates.open("ab")
    await gates.until_started("slow")
    assert not gates.cancelled
    gates.open("slow")
    gates.open("shared")

    assert await task == ["winner", ["slow", "shared"]]
    assert gates.started["shared"] == 1


async def test_a_call_that_is_dropped_when_it_could_start_does_not_start(gates: Any, make: SimpleNamespace) -> None:
    def won_without(call_after: ir.Expr) -> list[ir.Step]:
        """The other option of `first` needs no call, only a few turns more."""
        return [
            make.step("call", call_after, method="now"),
            Switch("quick", call_after, (("-", Const(None)),), Const("quick")),
            Switch("quicker", StepRef("quick"), (("quick", Const("won")),)),
            First("f", (StepRef("call"), StepRef("quicker"))),
        ]

    assert await answer(make.graph(*won_without(Const(1))), gates) == "won"
    assert not gates.started

    before = make.step("before", method="now")
    assert await answer(make.graph(before, *won_without(StepRef("before"))), gates) == "won"
    assert gates.started == {"before": 1}


async def test_the_deadline_names_a_step_inside_a_map(gates: Any, make: SimpleNamespace) -> None:
    graph = make.graph(ir.Call("each", "n", "wait", (ItemRef("m"),)), Map("m", Const(["a"]), StepRef("each")))

    with pytest.raises(StepTimeoutError, match="ran out of time in step each"):
        await answer(graph, gates, context=RequestContext(deadline=time.time() + 0.01))


async def test_an_answer_that_is_there_counts_though_the_deadline_passes(make: SimpleNamespace) -> None:
    deadline = time.time() + 0.02

    class Late:
        async def f(self) -> str:
            while time.time() < deadline + 0.01:
                pass
            await asyncio.sleep(0)  # the next turn of the loop runs this first, then the deadline's timer
            return "answer"

    assert (
        await answer(make.graph(ir.Call("s", "n", "f")), Late(), context=RequestContext(deadline=deadline)) == "answer"
    )


async def test_a_failure_while_the_event_loop_shuts_down_changes_nothing(gates: Any, make: SimpleNamespace) -> None:
    task = start(make.graph(make.step("a"), make.step("b"), output=make.listed("a", "b")), gates)
    await gates.until_started("a", "b")
    workers = [each for each in asyncio.all_tasks() if each.get_coro().__qualname__ == "_Request.work"]  # type: ignore[union-attr]
    assert len(workers) == 2

    workers[0].cancel()
    gates.open("a", ValueError("a"))
    gates.open("b", ValueError("b"))

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_steps_returned_is_let_go_at_once(make: SimpleNamespace) -> None:
    """Values are large, and the garbage collector comes late."""

    class Large:
        pass

    made: list[weakref.ref[Large]] = []

    class Node:
        async def make(self, *_: Any) -> Large:
            await asyncio.sleep(0)
            large = Large()
            made.append(weakref.ref(large))
            return large

        async def last(self, *values: Any) -> str:
            if not values[0]:
                raise ValueError("bad")
            return "answer"

        async def stuck(self) -> None:
            await asyncio.Event().wait()

    def graph(good: bool) -> ir.Graph:
        return make.graph(
            ir.Call("one", "n", "make"),
            ir.Call("each", "n", "make", (ItemRef("inner"),)),
            Map("inner", ItemRef("outer"), StepRef("each")),
            Map("outer", Const([[1, 2], [3]]), StepRef("inner")),
            ir.Call("stuck", "n", "stuck"),
            First("first", (StepRef("stuck"), StepRef("one"))),
            ir.Call("last", "n", "last", (Const(good), StepRef("first"), StepRef("outer"))),
        )

    gc.collect()
    gc.disable()
    try:
        assert await answer(graph(True), Node()) == "answer"
        with pytest.raises(ValueError, match="bad"):
            await answer(graph(False), Node())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [ref for ref in made if ref() is not None] == []
    finally:
        gc.enable()
    assert len(made) == 8


async def test_a_switch_takes_members_of_enums_for_what_they_extend(make: SimpleNamespace) -> None:
    class Kind(enum.StrEnum):
        IMAGE = "image"

    class Number(enum.IntEnum):
        ONE = 1

    graph = make.graph(Switch("s", InputRef(), (("image", Const("i")), (1, Const("one")))))

    assert await answer(graph, None, Kind.IMAGE) == "i"
    assert await answer(graph, None, Number.ONE) == "one"

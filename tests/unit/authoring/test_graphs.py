"""What can be written, run in process: each construct gives the answer that plain Python would."""

import asyncio
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import servepipe
from servepipe import InputData, MultiOutputNode, ServeInputNode, build, fallback, first, remote, split, switch
from servepipe.authoring.lower import UnusedStepWarning
from servepipe.errors import GraphError, StepTimeoutError

TABLE = runpy.run_path(str(Path(__file__).parents[2] / "ray/code/input_kinds.py"))


@remote
class Model:
    def __init__(self, val, *, offset=0):
        self.val = val
        self.offset = offset

    def forward(self, x):
        return self.val * x + self.offset

    async def later(self, x):
        await asyncio.sleep(0)
        return self.val * x

    def __call__(self, x):
        return ("called", x)

    @staticmethod
    def static(x):
        return ("static", x)

    @classmethod
    def of_class(cls, x):
        return (cls.__name__, x)


@remote
def add(*values):
    return sum(values)


@remote
def same(value):
    return value


@remote
async def wait_for_ever(_):
    await asyncio.Event().wait()


@remote
def fail(_):
    raise LookupError("no such thing")


@pytest.mark.parametrize("row", TABLE["ROWS"], ids=lambda row: row.name)
def test_each_kind_of_input(row):
    kit = TABLE["kit_of"](remote)
    with ServeInputNode() as i:
        output = row.graph(kit, i)
    assert output.execute(*row.args, **row.kwargs) == row.expected


def test_all_arguments_arrive_as_input_data():
    with ServeInputNode() as i:
        output = same.bind(i)
    data = output.execute(1, 2, k=3)
    assert isinstance(data, InputData)
    assert (data[1], data["k"], data.k) == (2, 3, 3)


async def test_the_diamond_runs_inside_an_event_loop_both_ways():
    with ServeInputNode() as dag_input:
        m1 = Model.bind(1)
        m2 = Model.bind(2)
        m1_output = m1.forward.bind(dag_input[0])
        m2_output = m2.later.bind(dag_input[1])
        ray_dag = add.bind(m1_output, m2_output, dag_input[2])
    assert ray_dag.execute(1, 2, 3) == 8
    assert await ray_dag.execute_async(1, 2, 3) == 8
    app = build(ray_dag)
    assert app.execute(1, 2, 3) == 8
    assert await app.execute_async(1, 2, 3) == 8


def test_methods_of_every_sort():
    with ServeInputNode() as i:
        model = Model.bind(3, offset=1)
        outputs = {
            "kwarg": model.forward.bind(x=i),
            "call": model.__call__.bind(i),
            "static": model.static.bind(i),
            "class": model.of_class.bind(i),
        }
    assert MultiOutputNode(outputs).execute(2) == {
        "kwarg": 7,
        "call": ("called", 2),
        "static": ("static", 2),
        "class": ("Model", 2),
    }
    assert [step.method for step in build(outputs).graph.steps] == ["forward", None, "static", "of_class"]


def test_one_class_bound_several_times_and_one_node_used_by_several_steps():
    with ServeInputNode() as i:
        twice, thrice = Model.bind(2), Model.bind(3)
        out = add.bind(twice.forward.bind(i), twice.later.bind(i), thrice.forward.bind(i))
    assert out.execute(10) == 70
    app = build(out)
    assert set(app.nodes) == {"twice", "thrice", "add"}


def test_subclasses_and_factories_and_plain_use_of_what_is_wrapped():
    @remote
    class Base:
        def __init__(self, val):
            self.val = val

        def forward(self, x):
            return self.val * x

    @remote
    class Child(Base):
        def __init__(self, val):
            super().__init__(val + 1)

        def forward(self, x):
            return -super().forward(x)

    def factory(factor):
        class Made:
            def forward(self, x):
                return factor * x

        return remote(Made)

    with ServeInputNode() as i:
        child, made = Child.bind(1), factory(5).bind()
        out = add.bind(child.forward.bind(i), made.forward.bind(i))
    assert out.execute(10) == 30
    assert Child(1).forward(10) == -20
    assert add(1, 2) == 3


class Holder:
    def __init__(self, models, function=None, deep=None):
        self.models = models
        self.function = function
        self.deep = deep

    async def total(self, x):
        return sum([await model.forward.remote(x) for model in self.models])

    def blocking(self, x):
        return self.function.remote(x, 1).result() + self.deep["key"][0].forward.remote(x).result()


def test_nodes_in_constructors_are_handles_also_in_containers_and_shared():
    with ServeInputNode() as i:
        m1, m2 = Model.bind(1), Model.bind(2)
        holder = remote(Holder).bind([m1, m2], function=add, deep={"key": (m2,)})
        other = remote(Holder).bind((m1,))
        out = add.bind(holder.total.bind(i), holder.blocking.bind(i), other.total.bind(i))
    assert out.execute(10) == 30 + 31 - 20 + 20 + 10
    app = build(out)
    assert list(app.nodes) == ["m1", "m2", "add", "holder", "other"]  # what is held stands before its holder


def test_containers_of_outputs_inputs_and_constants_in_arguments():
    with ServeInputNode() as i:
        doubled = Model.bind(2).forward.bind(i[0])
        out = same.bind({"list": [doubled, 1], "tuple": (i[1], [None, doubled]), "constant": {"a": [1.5, "x"]}})
    assert out.execute(1, 2) == {"list": [2, 1], "tuple": (2, [None, 2]), "constant": {"a": [1.5, "x"]}}


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda a, b: MultiOutputNode([a, b]), [1, 2]),
        (lambda a, b: MultiOutputNode((a, b)), (1, 2)),
        (lambda a, b: MultiOutputNode({"a": a, "b": [b]}), {"a": 1, "b": [2]}),
    ],
)
def test_several_outputs(wrap, expected):
    with ServeInputNode() as i:
        a, b = same.bind(i[0]), same.bind(i[1])
    assert wrap(a, b).execute(1, 2) == expected
    assert build(wrap(a, b)).execute(1, 2) == expected


def test_a_part_of_an_output_can_be_the_output():
    with ServeInputNode() as i:
        out = same.bind(i)["k"][0]
    assert out.execute({"k": [4]}) == 4
    assert build([out]).execute({"k": [4]}) == [4]


def test_switch_runs_the_case_that_is_taken_and_no_other():
    seen = []

    @remote
    def note(name):
        seen.append(name)
        return name

    with ServeInputNode() as i:
        out = switch(i, {"a": note.bind("a"), 1: note.bind("one"), False: note.bind("no")}, default="else")
    assert [out.execute(value) for value in ("a", 1, False, "z", True, 0)] == ["a", "one", "no", "else", "else", "else"]
    assert seen == ["a", "one", "no"]


def test_switch_without_default_fails_on_other_values():
    with ServeInputNode() as i:
        out = switch(i, {"a": same.bind(i)})
    with pytest.raises(Exception, match="z"):
        out.execute("z")


def test_split_keeps_a_value_on_its_branch():
    with ServeInputNode() as i:
        by_user = split((50, same.bind("left")), (50, same.bind("right")), on=i)
    answers = {user: {by_user.execute(user) for _ in range(3)} for user in "abcdefgh"}
    assert all(len(branch) == 1 for branch in answers.values())
    assert set().union(*answers.values()) == {"left", "right"}


def test_split_without_a_key_takes_the_only_branch_with_weight():
    with ServeInputNode() as i:
        out = split((0, fail.bind(i)), (100, same.bind(i)))
    assert out.execute(3) == 3


def test_map_takes_a_method_a_function_or_python():
    with ServeInputNode() as i:
        model = Model.bind(2)
        by_method = servepipe.map(model.forward, i["xs"])
        by_function = servepipe.map(same, i["xs"], concurrency=2)
        by_python = servepipe.map(lambda x: add.bind(x, i["n"]), by_method)
        parts = servepipe.map(lambda pair: add.bind(pair[0], pair.k["deep"]), i["pairs"])
        nested = servepipe.map(lambda row: servepipe.map(lambda x: add.bind(x, row[0]), row), i["rows"])
        constant = servepipe.map(lambda _: [i["n"], 1], [0, 0])
        out = MultiOutputNode([by_method, by_function, by_python, parts, nested, constant])
    pair = {0: 1, "k": {"deep": 5}}
    given = {"xs": [1, 2, 3], "n": 10, "pairs": [pair], "rows": [[1, 2], [3]]}
    assert out.execute(given) == [[2, 4, 6], [1, 2, 3], [12, 14, 16], [6], [[2, 3], [6]], [[10, 1], [10, 1]]]


def test_fallback_and_first():
    with ServeInputNode() as i:
        rescued = fallback(fail.bind(i), same.bind(i))
        fastest = first(wait_for_ever.bind(i), fail.bind(i), same.bind(i))
        out = add.bind(rescued, fastest)
    assert out.execute(2) == 4


def test_timeouts_and_retries_of_methods_and_functions():
    calls = []

    @remote
    class Flaky:
        def sometimes(self, x):
            calls.append(x)
            if len(calls) < 3:
                raise OSError("not yet")
            return x

    with ServeInputNode() as i:
        flaky = Flaky.bind()
        slow = wait_for_ever.options(timeout=0.05).bind(i)
        out = fallback(slow, flaky.sometimes.options(retries=2).bind(i))
    assert out.execute(7) == 7
    assert calls == [7, 7, 7]
    with pytest.raises(StepTimeoutError, match="slow"), pytest.warns(UnusedStepWarning):
        slow.execute(1)


def test_the_users_exception_arrives_as_itself():
    with ServeInputNode() as i:
        failing = fail.bind(i)
    with pytest.raises(LookupError, match="no such thing"):
        failing.execute(1)


def test_a_class_is_built_once_per_graph_object_and_reset_drops_it():
    built = []

    @remote
    class Counted:
        def __init__(self):
            built.append(self)

        def forward(self, x):
            return x

    with ServeInputNode() as i:
        out = Counted.bind().forward.bind(i)
    assert [out.execute(1), out.execute(2)] == [1, 2]
    assert len(built) == 1
    out.reset()
    out.reset()
    assert out.execute(3) == 3
    assert len(built) == 2
    with pytest.warns(servepipe.NamingWarning):
        app = build(out)
    app.reset()
    assert [app.execute(4), app.execute(4)] == [4, 4]
    app.reset()
    assert app.execute(5) == 5
    assert len(built) == 4


@pytest.mark.parametrize("form", [lambda dag: dag, build])
def test_first_calls_from_several_threads_build_a_node_once(form):
    built = []
    together = threading.Barrier(8)

    @remote
    class Slow:
        def __init__(self):
            built.append(self)

        def f(self, x):
            return x

    with ServeInputNode() as i:
        slow = Slow.bind()
        out = slow.f.bind(i)
    graph = form(out)

    def call(x):
        together.wait(30)
        return graph.execute(x)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call, range(8))) == list(range(8))
    assert len(built) == 1
    graph.reset()


def test_blocking_false_runs_on_the_loop_and_others_in_threads():
    @remote(blocking=False)
    def quick(_):
        return threading.get_ident()

    @remote
    def slow(_):
        return threading.get_ident()

    @remote
    async def on_loop(_):
        return threading.get_ident()

    with ServeInputNode() as i:
        out = MultiOutputNode([quick.bind(i), slow.bind(i), on_loop.bind(i)])
    quick_thread, slow_thread, loop_thread = out.execute(0)
    assert quick_thread == loop_thread != slow_thread


def test_fakes_replace_nodes():
    with ServeInputNode() as i:
        my_model = Model.bind(2)
        out = add.bind(my_model.forward.bind(i), 1)
    fake = SimpleNamespace(forward=lambda x: 100 * x)
    assert out.with_fakes(my_model=fake).execute(1) == 101
    assert build(out).with_fakes(**{"my-model": fake, "add": lambda a, b: (a, b)}).execute(1) == (100, 1)
    with out.with_fakes(my_model=fake) as faked:
        assert faked.execute(2) == 201
    assert out.execute(1) == 3
    with pytest.raises(GraphError, match="no node 'my_modle'") as caught:
        out.with_fakes(my_modle=fake)
    assert "my-model" in caught.value.fix


async def test_fakes_work_asynchronously_too():
    with ServeInputNode() as i:
        out = same.bind(i)
    assert await out.with_fakes(same=lambda x: [x]).execute_async(1) == [1]


def test_1500_steps_in_a_row_and_1000_side_by_side():
    @remote
    async def increment(x):
        return x + 1

    with ServeInputNode() as i:
        step = i
        for _ in range(1500):
            step = increment.bind(step)
        wide = add.bind(*[increment.bind(i) for _ in range(1000)])
    with pytest.warns(UnusedStepWarning):
        assert step.execute(0) == 1500
        assert wide.execute(1) == 2000


def test_nested_with_blocks_register_steps_with_the_innermost():
    with ServeInputNode() as outer:
        with ServeInputNode() as inner:
            inside = same.bind(inner)
        outside = same.bind(outer)
    assert inside.execute(1) == outside.execute(1) == 1


def test_an_input_works_without_a_with_block_too():
    i = ServeInputNode()
    out = same.bind(i[0])
    assert out.execute([3]) == 3
    assert build(out).graph.steps[0].name == "out"


def test_a_graph_may_read_no_input():
    out = add.bind(1, 2)
    assert out.execute() == 3
    assert build(out).execute() == 3


def test_reprs_say_what_they_are():
    items = []
    with ServeInputNode() as i:
        model = Model.bind(1)
        out = model.forward.bind(i[0].name)
        mapped = servepipe.map(lambda item: items.append(item.x[0]) or same.bind(item), i)
        others = [switch(i, {1: 2}), split((100, 1)), fallback(1, 2), first(1, 2)]
    assert repr(i[0].name["k"]) == "<input[0].name['k']>"
    assert repr(model).startswith("<node Model of ")
    assert repr(model.forward) == "Model.forward"
    assert repr(out["k"]) == "<the output of Model.forward['k']>"
    assert repr(add) == "remote(add)"
    assert repr(items[0]) == "<item.x[0]>"
    assert [repr(other) for other in others] == ["switch", "split", "fallback", "first"]
    app = build([out, mapped, *others], name="shown")
    assert repr(app) == "<App shown: model, same>"
    assert repr(app.model) == "<node 'model' {}>"

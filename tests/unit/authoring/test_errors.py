"""Whatever is written wrongly gets an error with what, the user's file and line, and what to do."""

import abc
import datetime
import enum
import math
import re
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path

import pytest

import servepipe
from servepipe import MultiOutputNode, ServeInputNode, build, fallback, first, remote, split, switch
from servepipe.authoring.lower import UnusedStepWarning
from servepipe.errors import (
    GraphError,
    GraphTooLargeError,
    ImportPathError,
    NamingError,
    ServePipeError,
    SignatureError,
    ValueNotSupportedError,
)

HERE = Path(__file__).name


@remote
class Model:
    limit = 5

    def __init__(self, val=1, *, offset=0):
        self.val = val

    def forward(self, x, *, scale=1):
        return x

    @property
    def size(self):
        return 1

    def stream(self, x):
        yield x

    async def astream(self, x):
        yield x


@remote
def ensemble(a, b=0):
    return a


@remote
class Holder:
    def __init__(self, *held, **more):
        pass

    def forward(self, x):
        return x


def line_of(marker):
    """The line of this file that ends in a comment with ``marker``."""
    [number] = [
        number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(f"# {marker}")
    ]
    return number


def assert_located(error, marker):
    assert isinstance(error, ServePipeError)
    assert error.what
    assert re.search(rf"{HERE}:{line_of(marker)}\b", error.where), error.where


class Color(enum.StrEnum):
    RED = "red"


Pair = namedtuple("Pair", "a b")
_loop = []
_loop.append(_loop)


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        ({"a": [1, object()]}, '["a"][1]', "object"),
        (math.nan, "", "nan"),
        ([-math.inf], "[0]", "inf"),
        (b"x", "", "bytes"),
        ({1, 2}, "", "set"),
        ({"a": {1: 2}}, '["a"]', "the key 1"),
        ("\ud800", "", "surrogate"),
        (Color.RED, "", "plain str"),
        (OrderedDict(a=1), "", "plain dict"),
        (Pair(1, 2), "", "plain tuple"),
        (datetime.date(2024, 1, 1), "", "date"),
        (_loop, "", "nested deeper"),
        pytest.param(10**5000, "", "too long", id="digits"),
    ],
)
def test_values_that_are_not_json(value, path, what):
    with ServeInputNode() as i:
        node = Model.bind(value)  # not JSON in a constructor
        out = node.forward.bind(i)
    with pytest.raises(ValueNotSupportedError, match=re.escape(what)) as caught:
        build(out)
    assert_located(caught.value, "not JSON in a constructor")
    assert f"args[0]{path}" in caught.value.where.replace("'", '"')

    with ServeInputNode() as i:
        bad = ensemble.bind(i, b=[i, value])  # not JSON in a step
    with pytest.raises(ValueNotSupportedError) as caught:
        bad.execute(1)
    assert_located(caught.value, "not JSON in a step")
    assert 'kwargs["b"][1]' in caught.value.where.replace("'", '"')


def test_values_beside_references_nest_only_so_deep():
    with ServeInputNode() as i:
        deep = i
        for _ in range(100):
            deep = [deep] if _ % 2 else {"k": deep}
        out = ensemble.bind(deep)
    with pytest.raises(ValueNotSupportedError, match="nested deeper"):
        build(out)


def test_unknown_method():
    node = Model.bind()
    with pytest.raises(SignatureError, match="no method 'forwrad'") as caught:
        node.forwrad.bind(1)  # unknown method
    assert_located(caught.value, "unknown method")
    assert "forward" in caught.value.fix
    with pytest.raises(SignatureError, match="is a property") as caught:
        _ = node.size
    with pytest.raises(SignatureError, match="is of type int, not a method"):
        _ = node.limit
    assert not hasattr(node, "anything_else")
    assert not hasattr(node, "_repr_html_")


@pytest.mark.parametrize("word", ["bind", "remote"])
def test_binding_a_node_once_more(word):
    node = Model.bind()
    with pytest.raises(SignatureError, match="a node of Model already") as caught:
        getattr(node, word)(1)  # bound once more
    assert_located(caught.value, "bound once more")
    assert ".forward.bind(" in caught.value.fix


def test_an_abstract_class():
    class Abstract(abc.ABC):
        @abc.abstractmethod
        def forward(self, x): ...

    with pytest.raises(SignatureError, match="is abstract: it leaves forward to its subclasses") as caught:
        remote(Abstract).bind()  # abstract
    assert_located(caught.value, "abstract")


def test_methods_that_a_class_makes_up_are_not_checked():
    @remote
    class Dynamic:
        def __getattr__(self, name):
            if name != "anything":
                raise AttributeError(name)
            return lambda x: (name, x)

    with ServeInputNode() as i:
        node = Dynamic.bind()
        out = node.anything.bind(i)
    assert out.execute(1) == ("anything", 1)


@pytest.mark.parametrize(
    "write",
    [
        lambda i: Model.bind(1, 2),
        lambda i: Model.bind(offest=1),
        lambda i: Model.bind().forward.bind(),
        lambda i: Model.bind().forward.bind(i, 2),
        lambda i: Model.bind().forward.bind(i, sclae=2),
        lambda i: ensemble.bind(),
        lambda i: ensemble.bind(1, 2, 3),
        lambda i: ensemble.bind(c=1),
    ],
)
def test_wrong_arity_or_keyword(write):
    with ServeInputNode() as i, pytest.raises(SignatureError) as caught:
        write(i)
    assert f"{HERE}:" in caught.value.where
    assert re.match(r"It takes \((val=1|x|a), .*\)\.", caught.value.fix)


def test_a_generator_method_or_function():
    async def agenerator(x):
        yield x

    node = Model.bind()
    with ServeInputNode() as i:
        for write in (node.stream, node.astream, remote(agenerator)):
            with pytest.raises(SignatureError, match="is a generator") as caught:
                write.bind(i)  # generator
            assert_located(caught.value, "generator")


def test_signatures_written_in_c_are_not_checked():
    with ServeInputNode() as i:
        out = remote(max).bind(i, [0, 1])
    assert out.execute([0, 2]) == [0, 2]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (lambda i: i, "input is given"),
        (lambda i: {"deep": [i[0].name]}, r"input\[0\].name is given"),
        (lambda i: ensemble.bind(i), "the output of ensemble is given"),
        (lambda i: [ensemble.bind(i)["k"]], r"the output of ensemble\['k'\] is given"),
    ],
)
def test_input_or_output_in_a_constructor(given, what):
    with ServeInputNode() as i:
        node = Holder.bind(given(i))  # input in constructor
        out = node.forward.bind(i)
    with pytest.raises(GraphError, match=what) as caught:
        build(out)
    assert_located(caught.value, "input in constructor")
    assert "method" in caught.value.fix


def test_the_item_of_a_map_in_a_constructor():
    with ServeInputNode() as i:
        out = servepipe.map(lambda item: Holder.bind(item).forward.bind(1), i)
    with pytest.raises(GraphError, match="item is given to the constructor"):
        build(out)


def test_a_cycle_through_handles():
    others = []
    with ServeInputNode() as i:
        a = Holder.bind(others)  # cycle of handles
        b = Holder.bind([a])
        others.append(b)
        out = a.forward.bind(i)
    with pytest.raises(GraphError, match=r"a cycle through handles: .* → .* → ") as caught:
        build(out)
    assert_located(caught.value, "cycle of handles")


def test_a_cycle_of_steps():
    values = []
    with ServeInputNode():
        a = ensemble.bind(values)
        values.append(ensemble.bind(a))
    with pytest.raises(GraphError, match="a cycle through steps"):
        build(a)


def test_a_node_given_to_a_step():
    with ServeInputNode() as i:
        model = Model.bind()
        out = ensemble.bind(i, [model])  # node given to a step
    with pytest.raises(GraphError, match="given to the step") as caught:
        build(out)
    assert_located(caught.value, "node given to a step")


def test_an_unused_step_is_a_warning_first_and_an_error_when_compiled():
    with ServeInputNode() as i:
        model = Model.bind()
        out = model.forward.bind(i)
        model.forward.bind(i)  # unused in the block
    later = ensemble.bind(out)
    with pytest.warns(
        UnusedStepWarning, match=rf"Model.forward \(.*:{line_of('unused in the block')}\), later \(ensemble"
    ):
        app = build(out)
    with pytest.warns(UnusedStepWarning):
        assert out.execute(1) == 1
    for write in (app.to_yaml, app.to_dict, app.deploy):
        with pytest.raises(GraphError, match=f"does not need.*:{line_of('unused in the block')}"):
            write()
    assert later is not None


def test_many_unused_steps_are_counted():
    with ServeInputNode() as i:
        for _ in range(8):
            ensemble.bind(i)
        out = ensemble.bind(i)
    with pytest.warns(UnusedStepWarning, match="and 3 more"):
        build(out)


@pytest.mark.parametrize(
    ("output", "what"),
    [
        (lambda i: [], "empty"),
        (lambda i: i, "empty"),
        (lambda i: 5, "empty"),
        (lambda i: MultiOutputNode({}), "empty"),
        (lambda i: Model.bind(), "not the output of a step"),
        (lambda i: Model, "not the output of a step"),
        (lambda i: Model.bind().forward, "not the output of a step"),
        (lambda i: ensemble, "not the output of a step"),
        (lambda i: [ensemble.bind(i), Model.bind()], "not the output of a step"),
    ],
)
def test_nothing_to_run(output, what):
    with ServeInputNode() as i:
        graph = output(i)
    with pytest.raises(GraphError, match=what) as caught:
        build(graph)  # nothing to run
    assert_located(caught.value, "nothing to run")


def test_a_step_or_input_of_another_graph():
    with ServeInputNode() as one:
        of_one = ensemble.bind(one)
        without_input = ensemble.bind(1)
    with ServeInputNode() as two:
        mixed = ensemble.bind(two, of_one)  # node of another graph
        mixed_input = ensemble.bind(two, one[0])
        shared = ensemble.bind(two, without_input)
    for graph in (mixed, mixed_input, shared, [ensemble.bind(1, two), one[1]]):
        with pytest.raises(GraphError, match="belongs to another graph"):
            build(graph)
    with pytest.raises(GraphError) as caught:
        mixed.execute(1)
    assert_located(caught.value, "node of another graph")


def test_an_item_used_outside_its_map():
    leaked = []
    with ServeInputNode() as i:
        mapped = servepipe.map(lambda item: leaked.append(item) or ensemble.bind(item), i)
        out = ensemble.bind(mapped, leaked[0])
    with pytest.raises(GraphError, match="outside of that map") as caught:
        build(out)
    assert f"{HERE}:" in caught.value.where


@pytest.mark.parametrize(
    ("give", "what"),
    [
        (lambda i: ensemble.bind(Model), "is not bound"),
        (lambda i: ensemble.bind([Model.bind().forward]), "is not bound"),
        (lambda i: ensemble.bind(i, MultiOutputNode([ensemble.bind(i)])), "MultiOutputNode is given"),
    ],
)
def test_what_is_nearly_a_node(give, what):
    with ServeInputNode() as i:
        out = give(i)
    with pytest.raises(GraphError, match=what):
        build(out)


@pytest.mark.parametrize("use", [lambda out: list(out), lambda out: 1 in out, lambda out: (lambda a, b: a)(*out)])
def test_outputs_and_inputs_cannot_be_iterated(use):
    with ServeInputNode() as i:
        for value in (i, i[0], ensemble.bind(i), ensemble.bind(i)["k"], MultiOutputNode([])):
            with pytest.raises(GraphError, match="cannot be iterated"):
                use(value)


@pytest.mark.parametrize("key", [1.5, None, slice(1, 2), True, (1, 2)])
def test_keys_are_int_or_str(key):
    with ServeInputNode() as i:
        items = []
        servepipe.map(lambda item: items.append(item) or item, i)
        for value in (i, i[0], ensemble.bind(i), ensemble.bind(i)["k"], items[0]):
            with pytest.raises(GraphError, match="indexed by int and str"):
                value[key]


@pytest.mark.parametrize(
    "use",
    [
        lambda value: value or 1,
        lambda value: not value,
        lambda value: value == 3,
        lambda value: value != "a",
        lambda value: value in ("a", "b"),
        lambda value: value > 3,
        lambda value: value >= 3,
        lambda value: value < value,
    ],
)
def test_python_cannot_branch_on_what_is_not_known_yet(use):
    with ServeInputNode() as i:
        out = ensemble.bind(i)
        for value in (i, i["k"], out, out["k"], MultiOutputNode([out])):
            with pytest.raises(GraphError, match="not known while the graph is written") as caught:
                use(value)
            assert "switch" in caught.value.fix


@pytest.mark.parametrize(
    "use",
    [
        lambda value: value + 1,
        lambda value: 1 + value,
        lambda value: value * value,
        lambda value: 2 - value,
        lambda value: value / 2,
        lambda value: value**2,
        lambda value: value % 2,
        lambda value: 7 // value,
        lambda value: value @ [1],
        lambda value: -value,
    ],
)
def test_python_cannot_compute_with_what_is_not_known_yet(use):
    with ServeInputNode() as i:
        out = ensemble.bind(i)
        for value in (i, i["k"], out, out["k"], MultiOutputNode([out])):
            with pytest.raises(
                GraphError, match=r"cannot be computed with.*not known while the graph is written"
            ) as caught:
                use(value)
            assert "test_errors.py:" in caught.value.where
            assert ".bind(...)" in caught.value.fix


def test_placeholders_can_be_looked_up_like_any_object():
    with ServeInputNode() as i:
        out = ensemble.bind(i)
    assert out in [i, out]
    assert {i: 1, out: 2}[out] == 2
    assert out != object()
    assert out is not None


def test_parts_of_a_multi_output_node():
    with pytest.raises(GraphError, match="the steps that it was made of"):
        MultiOutputNode([1])[0]
    with pytest.raises(GraphError, match="expected a list, tuple or dict"):
        MultiOutputNode(ensemble.bind(1))


def test_calling_a_method_instead_of_binding_it():
    with pytest.raises(GraphError, match="cannot be called") as caught:
        Model.bind().forward(1)
    assert ".forward.bind" in caught.value.fix


@pytest.mark.parametrize("target", [5, "x", Model.bind(), object()])
def test_remote_of_something_else(target):
    with pytest.raises(GraphError, match="a class or a function"):
        remote(target)


def test_hooks_must_be_callable():
    with pytest.raises(GraphError, match="the preprocessor 5 is not callable"):
        ServeInputNode(preprocessor=5)
    out = ensemble.bind(1)
    with pytest.raises(GraphError, match="the postprocessor 5 is not callable"):
        build(out, postprocessor=5)


def test_hooks_take_one_argument():
    with pytest.raises(SignatureError, match="too many positional"):
        ServeInputNode(preprocessor=lambda: 1)
    with pytest.raises(SignatureError, match="missing a required argument"):
        build(ensemble.bind(1), postprocessor=lambda answer, more: 1)


def test_attributes_of_outputs_and_of_classes_that_are_not_bound():
    with pytest.raises(GraphError, match="the output of ensemble has no attribute 'label'") as caught:
        _ = ensemble.bind(1).label  # attribute of an output
    assert_located(caught.value, "attribute of an output")
    assert caught.value.fix == 'Take a key of it: ["label"].'
    with pytest.raises(GraphError, match="Model is not bound") as caught:
        Model.forward.bind(1)
    assert "Model.bind(...).forward" in caught.value.fix
    assert Model.limit == 5
    assert not hasattr(Model, "nothing")
    assert not hasattr(ensemble.bind(1), "nothing")


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda: switch(1, {}), "at least one case"),
        (lambda: switch(1, [1]), "at least one case"),
        (lambda: switch(1, {1.5: 2}), "case 1.5"),
        (lambda: split((90, 1)), "sum to 90"),
        (lambda: split(), "sum to 0"),
        (lambda: split((1.5, 1), (98.5, 2)), "pair of a whole number"),
        (lambda: split((-10, 1), (110, 2)), "pair of a whole number"),
        (lambda: split([50, 1], [50, 2]), "pair of a whole number"),
        (lambda: servepipe.map(5, [1]), "something to do with each item"),
        (lambda: servepipe.map(ensemble, [1], concurrency=0), "at least 1"),
        (lambda: servepipe.map(ensemble, [1], concurrency=True), "at least 1"),
        (lambda: servepipe.map(str, [1]), "which is no step"),
        (lambda: servepipe.map(lambda item: None, [1]), "which is no step"),
        (lambda: fallback(1), "at least two"),
        (lambda: first(), "at least two"),
    ],
)
def test_combinators(write, what):
    with pytest.raises(GraphError, match=what) as caught:
        write()
    assert f"{HERE}:" in caught.value.where


def test_a_lambda_or_nested_class_cannot_be_compiled_but_executed():
    @remote
    class Nested:
        def forward(self, x):
            return x

    with ServeInputNode() as i:
        nested = Nested.bind()  # nested class
        out = nested.forward.bind(i)
        also = remote(lambda x: x).bind(i)
    assert MultiOutputNode([out, also]).execute(1) == [1, 1]
    with pytest.raises(ImportPathError, match=r"node 'nested'.*inside a function") as caught:
        build([out, also]).to_yaml()
    assert_located(caught.value, "nested class")
    with ServeInputNode() as i:
        out = remote(lambda x: x).bind(i)
    with pytest.raises(ImportPathError, match="lambda"):
        build(out).to_yaml()


def test_hooks_that_cannot_be_imported():
    with ServeInputNode(preprocessor=lambda request: 1) as i:
        out = ensemble.bind(i)
    with pytest.raises(ImportPathError, match=r"the preprocessor: .*lambda"):
        build(out).to_dict()
    with ServeInputNode() as i:
        out = ensemble.bind(i)
    with pytest.raises(ImportPathError, match=r"the postprocessor: .*lambda"):
        build(out, postprocessor=lambda answer: answer).to_dict()


def test_objects_of_main_without_a_file(monkeypatch):
    main = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    source = (
        "from servepipe import ServeInputNode, build, remote\n"
        "@remote\n"
        "def double(x): return 2 * x\n"
        "with ServeInputNode() as i:\n"
        "    out = double.bind(i)\n"
        "app = build(out)\n"
    )
    exec(source, main.__dict__)
    assert main.app.name == "main"
    assert main.app.execute(2) == 4
    with pytest.raises(ImportPathError, match="has no file"):
        main.app.to_yaml()


def test_more_than_the_resource_holds():
    def chain(length):
        with ServeInputNode() as i:
            step = i
            for _ in range(length):
                step = ensemble.bind(step)
        return build(step, name="chain")

    assert len(chain(128).to_dict()["spec"]["graph"]["steps"]) == 128
    with pytest.raises(GraphTooLargeError, match=r"129 steps.*at most 128"):
        chain(129).to_yaml()

    with ServeInputNode() as i:
        models = [Model.bind(n) for n in range(129)]
        out = Holder.bind(models).forward.bind(i)
    with pytest.warns(servepipe.NamingWarning):
        app = build(out)
    with pytest.raises(GraphTooLargeError, match=r"130 nodes.*at most 128"):
        app.to_yaml()


@pytest.mark.parametrize("name", ["Upper", "a--b-", "1a", "", "a" * 45, 5])
def test_names_of_pipelines(name):
    out = ensemble.bind(1)
    with pytest.raises(NamingError, match="pipeline's name"):
        build(out, name=name)


def test_the_modules_name_may_not_fit(write_module):
    with pytest.raises(NamingError, match="the module's name '_bad_") as caught:
        write_module(
            """
            from servepipe import build, remote
            @remote
            def one(): return 1
            out = one.bind()
            app = build(out)
            """,
            "_bad",
        )
    assert "name=" in caught.value.fix

"""Names of nodes and steps come from variables."""

import warnings
from contextlib import ExitStack

import pytest

from servepipe import NamingWarning, ServeInputNode, build, map, remote, switch
from servepipe.authoring.app import App
from servepipe.authoring.naming import RESERVED
from servepipe.errors import NamingError


@remote
class Model:
    def __init__(self, val=1):
        self.val = val

    def forward(self, x):
        return self.val * x

    def score_all(self, x):
        return x

    def __call__(self, x):
        return x


@remote
def ensemble(*values):
    return sum(values)


def node_names(app):
    return list(app.nodes)


def step_names(app):
    return [step.name for step in app.graph.steps]


def test_locals_of_a_function():
    with ServeInputNode() as i:
        m1 = Model.bind(1)
        The_Model__two = Model.bind(2)  # noqa: N806
        first_output = m1.forward.bind(i)
        ray_dag = ensemble.bind(first_output, The_Model__two.forward.bind(i))
    app = build(ray_dag)
    assert node_names(app) == ["m1", "the-model-two", "ensemble"]
    assert step_names(app) == ["first-output", "the-model-two-forward", "ray-dag"]


def test_globals_of_a_module(write_module):
    module = write_module("""
        from servepipe import ServeInputNode, build, remote

        @remote
        class Model:
            def forward(self, x): return x

        shared = Model.bind()
        with ServeInputNode() as i:
            m1 = Model.bind()
            out = m1.forward.bind(shared.forward.bind(i))

        def inside():
            with ServeInputNode() as i:
                local = Model.bind()
                result = local.forward.bind(shared.forward.bind(i))
            return build(result)

        app = build(out)
        from_function = inside()
    """)
    assert node_names(module.app) == ["shared", "m1"]
    assert step_names(module.app) == ["shared-forward", "out"]
    assert node_names(module.from_function) == ["shared", "local"]
    assert step_names(module.from_function) == ["shared-forward", "result"]


def test_the_frame_that_leaves_the_with_block_counts_before_builds_caller():
    def write():
        with ServeInputNode() as i:
            inner_name = Model.bind()
            out = inner_name.forward.bind(i)
        return inner_name, out

    outer_name, dag = write()
    app = build(dag)
    assert node_names(app) == ["inner-name"]
    assert step_names(app) == ["out"]
    assert outer_name is not None


def test_builds_caller_names_what_the_with_block_did_not():
    def write(i):
        return [Model.bind(1).forward.bind(i)]

    with ServeInputNode() as i:
        pass
    late_node = Model.bind(2)
    late_step = late_node.forward.bind(write(i)[0])
    with pytest.warns(NamingWarning):
        app = build(late_step)
    assert node_names(app) == ["model-1", "late-node"]
    assert step_names(app) == ["model-1-forward", "late-step"]


def test_elements_of_lists_tuples_and_dicts():
    with ServeInputNode() as i:
        models = [Model.bind(n) for n in range(2)]
        pair = (Model.bind(5), Model.bind(6))
        zoo = {"cat": Model.bind(7), 3: Model.bind(8), ("no", "name"): None}
        outs = {name: model.forward.bind(i) for name, model in zoo.items() if model is not None}
        result = ensemble.bind(*[model.forward.bind(i) for model in (*models, *pair)], *outs.values())
    app = build(result)
    assert node_names(app) == ["models-0", "models-1", "pair-0", "pair-1", "zoo-cat", "zoo-3", "ensemble"]
    assert step_names(app)[:2] == ["models-0-forward", "models-1-forward"]
    assert step_names(app)[-3:] == ["outs-cat", "outs-3", "result"]
    assert app["models-0"] is app.models_0


def test_two_variables_for_one_object_the_first_counts():
    with ServeInputNode() as i:
        original = Model.bind()
        alias = original
        models = [alias]
        out = models[0].forward.bind(i)
    app = build(out)
    assert node_names(app) == ["original"]


def test_lazy_proxies_among_the_variables_are_not_woken_up():
    class Lazy:
        @property
        def __class__(self):
            raise RuntimeError("woken up")

    with ServeInputNode() as i:
        lazy, many = Lazy(), [Lazy()]
        m1 = Model.bind()
        out = m1.forward.bind(i)
    assert node_names(build(out)) == ["m1"]
    assert (lazy, many) is not None


def test_private_variables_name_nothing():
    with ServeInputNode() as i:
        _hidden = Model.bind()
        out = _hidden.forward.bind(i)
    with pytest.warns(NamingWarning, match=r"model-1 \(.*test_names.py:\d+\)"):
        app = build(out)
    assert node_names(app) == ["model-1"]


def test_what_has_no_variable_is_numbered_in_the_order_of_binding_with_one_warning():
    def made(value):
        return Model.bind(value)

    with ServeInputNode() as i:
        model_1 = Model.bind(0)
        outs = [node.forward.bind(i) for node in reversed([made(10), made(20)])]
        out = ensemble.bind(model_1.forward.bind(i), *outs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        app = build(out)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    args = {name: app.definitions[name].args[0].value for name in app.nodes if name != "ensemble"}
    assert args == {"model-1": 0, "model-2": 10, "model-3": 20}


def test_options_name_overrides_the_variable():
    with ServeInputNode() as i:
        variable = Model.options(name="Explicit_Name").bind()
        step = variable.forward.options(name="its_step").bind(i)
        chosen = switch(i, {1: step}, default=step, name="chosen-by-name")
        out = ensemble.options(name="judge").bind(chosen)
    app = build(out)
    assert node_names(app) == ["explicit-name", "judge"]
    assert step_names(app) == ["its-step", "chosen-by-name", "out"]


def test_a_function_is_one_node_however_often_it_is_bound_with_the_same_options():
    with ServeInputNode() as i:
        first = ensemble.bind(i)
        again = ensemble.options(num_cpus=1).options(timeout=2).bind(first)
        same_options = ensemble.options(num_cpus=1, retries=1).bind(again)
        out = ensemble.bind(same_options, ensemble.bind(i), ensemble.bind(i))
    with pytest.raises(NamingError, match="'ensemble' of the function ensemble is taken"):
        build(out)

    with ServeInputNode() as i:
        first = ensemble.bind(i)
        again = ensemble.options(name="big", num_cpus=1).bind(first)
        out = ensemble.bind(again, ensemble.bind(i), ensemble.bind(i), ensemble.options(num_cpus=1, name="big").bind(i))
    app = build(out)
    assert node_names(app) == ["ensemble", "big"]
    assert step_names(app) == ["first", "again", "ensemble-call", "ensemble-call-2", "big-call", "out"]


def test_steps_without_a_variable_are_named_after_node_and_method():
    with ServeInputNode() as i:
        m = Model.bind()
        m_forward_2 = m.forward.bind(i)
        several = [m.forward.bind(m_forward_2), m.score_all.bind(i)]
        out = ensemble.bind(m.__call__.bind(i), m.forward.bind(i), m.forward.bind(i), map(m.forward, i), *several)
        del several
    app = build(out)
    assert sorted(step_names(app)) == sorted(
        ["m-call", "m-forward", "m-forward-2", "m-forward-3", "m-forward-4", "m-forward-5", "map", "m-score-all", "out"]
    )


def test_an_exit_stack_leaves_the_block_of_the_user_too():
    with ExitStack() as stack:
        i = stack.enter_context(ServeInputNode())
        m1 = Model.bind()
        out = m1.forward.bind(i)
    assert node_names(build([out])) == ["m1"]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names(name):
    with ServeInputNode() as i:
        out = Model.options(name=name).bind().forward.bind(i)
    with pytest.raises(NamingError, match="reserved") as caught:
        build(out)
    assert "test_names.py:" in caught.value.where
    assert ".options(name=" in caught.value.fix


def test_every_member_of_app_is_reserved():
    with ServeInputNode() as i:
        m1 = Model.bind()
        out = m1.forward.bind(i)
    app = build(out)
    assert {"m1", "to_yaml"} <= set(dir(app))
    members = {name.replace("_", "-") for name in dir(app) if not name.startswith("_")} - {"m1"}
    assert members <= RESERVED
    assert members | {"default", "input"} == RESERVED
    assert isinstance(app, App)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("modèle", "a-z"),
        ("class_", "a-z"),
        ("1st", "a-z"),
        ("", "a-z"),
        ("a" * 41, "41 characters"),
        ("white space", "a-z"),
    ],
)
def test_unusable_names(name, problem):
    with ServeInputNode() as i:
        out = Model.options(name=name).bind().forward.bind(i)
    with pytest.raises(NamingError, match=problem):
        build(out)


def test_40_characters_are_possible():
    with ServeInputNode() as i:
        node = Model.options(name="a" * 40).bind()
        out = node.forward.bind(i)
    assert node_names(build(out)) == ["a" * 40]


def test_a_generated_step_name_that_is_too_long_asks_for_one():
    with ServeInputNode() as i:
        m = Model.options(name="a" * 38).bind()
        out = ensemble.bind(m.score_all.bind(i))
    with pytest.raises(NamingError, match="48 characters") as caught:
        build(out)
    assert '.options(name="...")' in caught.value.fix


def test_clashes_name_both_places():
    with ServeInputNode() as i:
        model_a = Model.bind(1)
        MODEL_A = Model.bind(2)  # noqa: N806
        out = ensemble.bind(model_a.forward.bind(i), MODEL_A.forward.bind(i))
    with pytest.raises(NamingError, match=r"'model-a'.*taken already.*test_names.py:\d+"):
        build(out)
    with ServeInputNode() as i:
        m = Model.bind()
        out_1 = m.forward.bind(i)
        Out_1 = m.forward.bind(i)  # noqa: N806
        dag = ensemble.bind(out_1, Out_1)
    with pytest.raises(NamingError, match="'out-1' of the step"):
        build(dag)


def test_two_lambdas_are_asked_to_become_functions():
    # Another name would lead to the next error: nobody else can import a lambda.
    with ServeInputNode() as i:
        out = remote(lambda x: 2 * x).bind(remote(lambda x: x).bind(i))
    with pytest.raises(NamingError, match=r"'lambda'.*taken already") as caught:
        build(out)
    assert caught.value.fix == "Write it as a function with a name of its own, at the top level of its module."


def test_elements_of_a_comprehension():
    with ServeInputNode() as i:
        models = [Model.bind(n) for n in range(2)]
        by_key = {key: Model.bind(key) for key in ("a", "b")}
        out = ensemble.bind(*[m.forward.bind(i) for m in (*models, *by_key.values())])
    assert node_names(build(out)) == ["models-0", "models-1", "by-key-a", "by-key-b", "ensemble"]


def test_a_combinator_says_how_to_name_it():
    with ServeInputNode() as i:
        out = switch(i, {1: 2}, name="?")
    with pytest.raises(NamingError) as caught:
        build(out)
    assert 'name="..."' in caught.value.fix


def test_a_lambda_with_a_module_level_name_can_be_a_node():
    with ServeInputNode() as i:
        out = remote(lambda x: x).bind(i)
    assert out.execute(3) == 3
    assert node_names(build(out)) == ["lambda"]


@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config)
    yield shell
    shell.reset(new_session=False)


def test_cells_of_a_notebook_that_are_run_again(shell):
    shell.run_cell(
        "from servepipe import ServeInputNode, build, remote\n"
        "@remote\n"
        "class Model:\n"
        "    def __init__(self, val): self.val = val\n"
        "    def forward(self, x): return self.val * x\n"
        "@remote\n"
        "def ensemble(*values): return sum(values)\n",
        store_history=True,
    ).raise_error()
    graph = (
        "with ServeInputNode() as i:\n"
        "    m1 = Model.bind(1)\n"
        "    models = [Model.bind(2)]\n"
        "    step = m1.forward.bind(i)\n"
        "    out = ensemble.bind(step, models[0].forward.bind(i))\n"
        "out"
    )
    after = "last = ensemble.bind(out, 1)\nlast"
    finish = "app = build(last)\n(list(app.nodes), [s.name for s in app.graph.steps], last.execute(10))"
    answers = []
    for cell in (graph, after, finish, finish, after, finish, graph, after, finish):
        result = shell.run_cell(cell, store_history=True)
        result.raise_error()
        if cell is finish:
            answers.append(result.result)
    expected = (["m1", "models-0", "ensemble"], ["step", "models-0-forward", "out", "last"], 31)
    assert answers == [expected] * 4

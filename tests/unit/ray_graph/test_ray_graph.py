"""Graphs of Ray's own objects, compiled without starting Ray."""

import importlib
import subprocess
import sys
import textwrap

import pytest

ray = pytest.importorskip("ray")

from ray.dag import DAGNode, InputNode, MultiOutputNode  # noqa: E402

import servepipe  # noqa: E402
from servepipe import remote  # noqa: E402
from servepipe.authoring.lower import UnusedStepWarning  # noqa: E402
from servepipe.errors import GraphError, NamingError, SignatureError, ValueNotSupportedError  # noqa: E402
from servepipe.ray import ServeInputNode, build  # noqa: E402


class Plain:
    def __init__(self, val, *held):
        self.val = val
        self.held = held

    def forward(self, x):
        return self.val * x

    async def through(self, x):
        return await self.held[0].forward.remote(x)

    def stream(self, x):
        yield x


class Batched:
    @servepipe.batch(max_size=16)
    def double(self, items):
        return [2 * item for item in items]


def plain_sum(*values, extra=0):
    return sum(values) + extra


Model = ray.remote(Plain)
ensemble = ray.remote(plain_sum)


def test_the_diamond_in_process():
    with ServeInputNode() as dag_input:
        m1 = Model.bind(1)
        m2 = Model.bind(2)
        m1_output = m1.forward.bind(dag_input[0])
        m2_output = m2.forward.bind(dag_input[1])
        ray_dag = ensemble.bind(m1_output, m2_output, dag_input[2])
    app = build(ray_dag)
    assert list(app.nodes) == ["m1", "m2", "plain-sum"]  # a function's node has the function's name
    assert [step.name for step in app.graph.steps] == ["m1-output", "m2-output", "ray-dag"]
    assert app.execute(1, 2, 3) == 8
    assert app.name == "test-ray-graph"
    assert servepipe.build(ray_dag).to_yaml() == app.to_yaml()


# The same graph is written twice, with Ray's objects and with light ones; everything that both can say is in it.
GRAPH = """
    import plain_{number} as plain
    from {library} import ServeInputNode, build
    {imports}

    Model = {wrap}(plain.Model)
    ensemble = {wrap}(plain.ensemble)

    with ServeInputNode(preprocessor=plain.body_of) as i:
        shared = Model.options(num_cpus=0.5, runtime_env={{"env_vars": {{"A": "1"}}}}).bind(1)
        models = [Model.bind(n, key={{"deep": [1.0, None]}}) for n in range(2)]
        holder = Model.bind((2, [shared, {{"m": models[0]}}]))
        first = shared.forward.bind(i[0])
        parts = {{"a": models[0].forward.bind(i.k), "b": models[1].forward.bind(x=i["j"])}}
        inner = ensemble.bind([first, (parts["a"], {{"deep": first}})], more=first)
        unnamed = [[ensemble.bind(inner)], [ensemble.bind(first)]]
        last = Model.bind(9).forward.bind(i)
        out = ensemble.bind(unnamed[1][0], unnamed[0][0], holder.forward.bind(i), parts["b"], last)
    app = build([out, first], name="twice")
"""


def test_the_same_bytes_as_with_light_objects(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plain_1.py").write_text(
        "class Model:\n    def __init__(self, val, key=None): pass\n    def forward(self, x): return x\n"
        "def ensemble(*values, more=None): return 1\n"
        "def body_of(request): return 1\n"
    )
    rays = {"library": "servepipe.ray", "imports": "import ray", "wrap": "ray.remote"}
    light = {"library": "servepipe", "imports": "from servepipe import remote", "wrap": "remote"}
    texts = []
    for name, words in (("rays_1", rays), ("light_1", light)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(GRAPH).format(number=1, **words))
        with pytest.warns(servepipe.NamingWarning, match="model-1"):
            texts.append(importlib.import_module(name).app.to_yaml().replace(name, "pipeline"))
    assert texts[0] == texts[1]
    assert "cpu: 500m" in texts[0]
    assert "$node" in texts[0]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"num_cpus": 2}, {"resources": {"cpu": "2"}}),
        ({"num_gpus": 0.5, "memory": 2**30}, {"resources": {"gpu": "500m", "memory": "1Gi"}}),
        ({"resources": {"special": 1}}, {"resources": {"custom": {"special": "1"}}}),
        ({"runtime_env": {"pip": ["x"]}}, {"runtimeEnv": {"pip": ["x"]}}),
    ],
)
def test_rays_options_become_fields_of_the_resource(options, fields):
    node = ray.remote(**options)(Plain).bind(1)
    called = ray.remote(**options)(plain_sum)
    with ServeInputNode() as i:
        out = called.bind(node.forward.bind(i))
    app = build(out)
    assert {name: app.node.options[name] for name in fields} == fields
    assert {name: app.plain_sum.options[name] for name in fields} == fields


def test_batched_methods_of_a_ray_class():
    node = ray.remote(num_cpus=2)(Batched).bind()
    with ServeInputNode() as i:
        out = node.double.bind(i)
    app = build(out)
    assert app.to_dict()["spec"]["nodes"]["node"]["maxOngoingRequests"] == 32
    assert app.execute(4) == 8


@pytest.mark.parametrize("options", [{"max_restarts": 3}, {"name": "actor"}, {"max_concurrency": 4}])
def test_other_options_of_ray_are_errors(options):
    with ServeInputNode() as i:
        out = Model.options(**options).bind(1).forward.bind(i)
    with pytest.raises(GraphError, match=f"no option '{next(iter(options))}'") as caught:
        build(out)
    assert "test_ray_graph.py:" in caught.value.where


def test_options_of_functions_and_methods_too():
    with ServeInputNode() as i:
        out = ensemble.options(max_retries=3).bind(i)
    with pytest.raises(GraphError, match="no option 'max_retries'"):
        build(out)
    with ServeInputNode() as i:
        out = Model.bind(1).forward.options(num_returns=2).bind(i)
    with pytest.raises(GraphError, match="the method 'forward' in a pipeline takes no option 'num_returns'"):
        build(out)


@pytest.mark.parametrize(
    "give",
    [
        lambda light, rays: light,
        lambda light, rays: light[0],
        lambda light, rays: [light["k"].name],
        lambda light, rays: {"deep": (light,)},
        lambda light, rays: remote(plain_sum).bind(light),
        lambda light, rays: remote(Plain).bind(1),
        lambda light, rays: remote(Plain),
        lambda light, rays: remote(Plain).bind(1).forward,
    ],
)
def test_light_objects_inside_rays_bind_name_the_import(give):
    light = servepipe.ServeInputNode()
    with ServeInputNode() as rays:
        out = ensemble.bind(rays, extra=give(light, rays))
    with pytest.raises(GraphError, match=r"of servepipe is given to a \.bind of Ray") as caught:
        servepipe.build(out)
    assert "from servepipe.ray import ServeInputNode" in caught.value.fix
    with ServeInputNode() as rays:
        positional = ensemble.bind(rays, give(light, rays))
    with pytest.raises(GraphError, match=r"of servepipe is given to a \.bind of Ray"):
        build(positional)


def test_rays_objects_inside_a_light_bind():
    with servepipe.ServeInputNode() as i:
        out = remote(plain_sum).bind(i, Model.bind(1))
    with pytest.raises(GraphError, match="a ClassNode of Ray is given to a step of servepipe"):
        servepipe.build(out)
    with pytest.raises(GraphError, match=r"wrapped by ray\.remote already"):
        remote(Model)
    with pytest.raises(GraphError, match=r"wrapped by ray\.remote already"):
        remote(ensemble)


def test_a_call_that_no_output_needs_is_an_unused_step():
    with ServeInputNode() as i:
        node = Model.bind(1)
        node.forward.bind(0)  # a call before: Ray would run it first
        needed = node.forward.bind(i)
        extra = ensemble.bind(needed)
        beyond = ensemble.bind(extra)
    with pytest.warns(UnusedStepWarning, match=r"Plain\.forward .*extra \(plain_sum.*beyond \(plain_sum"):
        app = build(needed)
    with pytest.raises(GraphError, match="does not need"):
        app.to_yaml()
    assert beyond is not None


def test_steps_of_another_graph_with_shared_nodes_are_no_unused_steps():
    shared = Model.bind(1)
    with ServeInputNode() as one:
        first = shared.forward.bind(one)
    with ServeInputNode() as two:
        second = ensemble.bind(shared.forward.bind(two))
    assert build(first).execute(2) == 2
    assert build(second).execute(3) == 3


def test_inputs_of_two_graphs_in_one():
    with ServeInputNode() as one, ServeInputNode() as two:
        out = ensemble.bind(one, two)
    with pytest.raises(GraphError, match="belongs to another graph"):
        build(out)


def test_several_outputs_and_plain_input_nodes():
    with InputNode() as i:
        a, b = ensemble.bind(i), ensemble.bind(i, 1)
        out = MultiOutputNode([a, b])
    app = build(out)
    assert [step.name for step in app.graph.steps] == ["a", "b"]
    assert app.execute(1) == [1, 2]
    assert build({"a": a, "b": (b,)}).execute(1) == {"a": 1, "b": (2,)}
    assert build([out]).execute(1) == [[1, 2]]


def test_handles():
    with ServeInputNode() as i:
        inner = Model.bind(3)
        outer = Model.bind(1, inner)
        out = outer.through.bind(i)
    app = build(out)
    assert list(app.nodes) == ["inner", "outer"]
    assert app.execute(2) == 6


def test_signatures_values_and_names_are_checked_alike():
    for write, error in (
        (lambda i: Model.bind(1).forward.bind(i, 2), SignatureError),
        (lambda i: Model.bind(1).stream.bind(i), SignatureError),
        (lambda i: Model.bind().forward.bind(i), SignatureError),
        (lambda i: ensemble.bind(i, [b"x"]), ValueNotSupportedError),
    ):
        with ServeInputNode() as i:
            graph = write(i)
        with pytest.raises(error) as caught:
            build(graph)
        assert "test_ray_graph.py:" in caught.value.where
        assert "_ray_trace_ctx" not in str(caught.value)
    with ServeInputNode() as i:
        ingress = Model.bind(1)
        out = ingress.forward.bind(i)
    with pytest.raises(NamingError, match="reserved"):
        build(out)


def test_what_has_no_counterpart():
    with ServeInputNode() as i:
        strange = DAGNode([], {}, {}, {})
    with pytest.raises(GraphError, match="a DAGNode of Ray has no counterpart"):
        build(ensemble.bind(strange))
    with pytest.raises(GraphError, match="not the output of a step"):
        build(Model.bind(1))
    with pytest.raises(GraphError, match="empty"):
        build(i)


def test_an_output_that_is_nested_too_deeply():
    value = []
    value.append(value)
    with ServeInputNode() as i:
        out = ensemble.bind(i)
    with pytest.raises(GraphError, match="nested deeper"):
        build([out, value])


def test_cycles():
    held = []
    with ServeInputNode() as i:
        a = Model.bind(1, held)
        held.append(a)
        out = a.forward.bind(i)
    with pytest.raises(GraphError, match="a cycle of nodes through Plain"):
        build(out)


def test_long_graphs_compile():
    with InputNode() as i:
        step = i
        for _ in range(1500):
            step = ensemble.bind(step, extra=1)
    assert build(step).execute(0) == 1500


def test_the_preprocessor_must_be_callable():
    with pytest.raises(GraphError, match="not callable"):
        ServeInputNode(preprocessor=5)


def test_servepipe_does_not_import_ray_by_itself():
    code = (
        "import sys, servepipe\n"
        "from servepipe import ServeInputNode, build, remote\n"
        "with ServeInputNode() as i:\n"
        "    out = remote(max).bind(i, 1)\n"
        "build(out)\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

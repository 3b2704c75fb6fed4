"""`build`: attributes, the resource, deterministic bytes, importing, deploying."""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import yaml

import servepipe
from servepipe import MultiOutputNode, ServeInputNode, build, load, remote
from servepipe.authoring import backends, loader
from servepipe.errors import GraphError, MissingExtraError, ServePipeError


@remote
class Model:
    def __init__(self, val=1, **more):
        self.val = val

    def forward(self, x):
        return self.val * x


@remote
def ensemble(*values):
    return sum(values)


def before(request):
    return 1


def after(answer):
    return answer


def diamond(**options):
    with ServeInputNode(preprocessor=before) as dag_input:
        m1 = Model.bind(1)
        m2 = Model.bind(val=2)
        m1_output = m1.forward.bind(dag_input[0])
        m2_output = m2.forward.bind(dag_input[1])
        ray_dag = ensemble.bind(m1_output, m2_output, dag_input[2])
    return build(ray_dag, **options)


def test_nodes_are_attributes_and_items():
    app = diamond()
    assert app.m1 is app["m1"] is app.nodes["m1"]
    assert list(app) == ["m1", "m2", "ensemble"]
    assert not hasattr(app, "m3")
    assert not hasattr(app, "_m1")
    with pytest.raises(GraphError, match="no node 'm_3'") as caught:
        _ = app.m_3
    assert "test_app.py:" in caught.value.where
    with pytest.raises(GraphError, match="no node 'ensembel'") as caught:
        app["ensembel"]
    assert "ensemble" in caught.value.fix


@pytest.mark.parametrize(
    "assign",
    [
        lambda app: setattr(app.m1, "num_replicas", 3),
        lambda app: setattr(app, "m1", 3),
        lambda app: setattr(app, "ingress", 3),
        lambda app: setattr(app.ingress, "route", "/x"),
    ],
)
def test_an_option_that_is_assigned_is_not_lost_silently(assign):
    with pytest.raises(GraphError) as caught:
        assign(diamond())
    assert "set_options(" in caught.value.fix
    assert "test_app.py:" in caught.value.where


def test_the_name_is_the_modules_unless_it_is_given(write_module):
    assert diamond().name == "test-app"
    assert diamond(name="mine").name == "mine"


def test_a_script_names_its_pipeline_after_its_file(monkeypatch):
    main = type(sys)("__main__")
    main.__file__ = "/somewhere/My_Script.py"
    exec("from servepipe import build, remote\napp = build(remote(max).bind(1, 2))", main.__dict__)
    assert main.app.name == "my-script"


def test_the_resource():
    app = diamond(ray_version="2.60.0", postprocessor=after)
    app.m1.set_options(num_replicas=3)
    resource = app.to_dict()
    code = resource["spec"]["nodes"]["m1"]["code"]
    home = loader.module_name(sys.modules[__name__])
    assert code.startswith("sha256:")
    assert resource == {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "test-app"},
        "spec": {
            "rayVersion": "2.60.0",
            "graph": {
                "input": {"preprocessor": f"{home}:before", "code": code},
                "steps": [
                    {"name": "m1-output", "node": "m1", "method": "forward", "args": [{"$input": [0]}]},
                    {"name": "m2-output", "node": "m2", "method": "forward", "args": [{"$input": [1]}]},
                    {
                        "name": "ray-dag",
                        "node": "ensemble",
                        "args": [{"$step": "m1-output"}, {"$step": "m2-output"}, {"$input": [2]}],
                    },
                ],
                "output": {"$step": "ray-dag"},
                "response": {"postprocessor": f"{home}:after", "code": code},
            },
            "nodes": {
                "m1": {"import": f"{home}:Model", "code": code, "args": [1], "replicas": 3},
                "m2": {"import": f"{home}:Model", "code": code, "kwargs": {"val": 2}},
                "ensemble": {"import": f"{home}:ensemble", "code": code, "placement": "Inline"},
            },
        },
    }
    assert yaml.safe_load(app.to_yaml()) == resource
    assert app.preprocessor is before
    assert app.postprocessor is after


def test_code_of_installed_packages_has_no_digest():
    import yaml as package

    with ServeInputNode() as i:
        out = remote(package.safe_load).bind(i)
    app = build(out)
    assert app.to_dict()["spec"]["nodes"] == {"safe-load": {"import": "yaml:safe_load", "placement": "Inline"}}


def test_values_that_need_a_form_of_their_own():
    with ServeInputNode() as i:
        m1 = Model.bind((1.0, None), more={"$input": {"deep": None}})
        out = ensemble.bind(m1.forward.bind({"$step": 2**70, "a": i}))
    app = build(out)
    app.m1.set_options(user_config={"threshold": 1.0})
    spec = app.to_dict()["spec"]
    assert spec["nodes"]["m1"]["args"] == [{"$tuple": [{"$float": "1.0"}, None]}]
    assert spec["nodes"]["m1"]["kwargs"] == {"more": {"$value": {"$input": {"deep": {"$null": True}}}}}
    assert spec["nodes"]["m1"]["userConfig"] == {"threshold": {"$float": "1.0"}}
    assert spec["graph"]["steps"][0]["args"] == [{"$value": {"$step": {"$int": str(2**70)}, "a": {"$input": []}}}]


def test_handles_in_the_resource():
    with ServeInputNode() as i:
        m1 = Model.bind()
        holder = Model.bind([m1, {"f": ensemble}], deep=(m1,))
        out = holder.forward.bind(i)
    node = build(out).to_dict()["spec"]["nodes"]["holder"]
    assert node["args"] == [[{"$node": "m1"}, {"f": {"$node": "ensemble"}}]]
    assert node["kwargs"] == {"deep": {"$tuple": [{"$node": "m1"}]}}


def test_options_reach_the_nodes_in_process():
    app = diamond()
    app.m1.set_options(max_ongoing_requests=1, blocking=False, user_config={"a": 1})
    definition = app.definitions["m1"]
    assert (definition.max_ongoing_requests, definition.blocking, definition.user_config) == (1, False, {"a": 1})
    assert app.definitions["m2"].max_ongoing_requests == 5


def test_yaml_goes_to_a_file(tmp_path):
    text = diamond().to_yaml(tmp_path / "pipeline.yaml")
    assert (tmp_path / "pipeline.yaml").read_bytes() == text.encode()


PIPELINE = """
    import helper
    from servepipe import ServeInputNode, build, remote

    @remote
    class Model:
        def __init__(self, val, **more): self.val = val
        def forward(self, x): return self.val * helper.scale(x)

    @remote
    def ensemble(*values): return sum(values)

    with ServeInputNode() as dag_input:
        m1 = Model.bind(1, tags={"b", "a"} and {"b": 1, "a": 2})
        models = {name: Model.bind(n) for n, name in enumerate(("x", "y"))}
        ray_dag = ensemble.bind(m1.forward.bind(dag_input[0]), *[m.forward.bind(dag_input[1]) for m in models.values()])

    app = build(ray_dag)
    app.to_yaml("written.yaml")
    print(app.to_yaml(), end="")
    reached = "after to_yaml"
    app.deploy() if "DEPLOY" in globals() else ray_dag.execute(1, 2)
    reached = "after execute"
"""


@pytest.fixture
def project(tmp_path):
    """A project whose pipeline prints its YAML."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "helper.py").write_text("def scale(x):\n    return 2 * x\n")
    (folder / "my_pipeline.py").write_text(textwrap.dedent(PIPELINE))
    return folder


def run(*command, cwd, seed):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_bytes_in_two_processes_with_different_seeds_and_folders(project, tmp_path):
    as_script = run(str(project / "my_pipeline.py"), cwd=tmp_path, seed="1")
    as_module = run("-m", "my_pipeline", cwd=project, seed="2")
    imported = run(
        "-c",
        "import sys; from servepipe.authoring.loader import load_app; load_app(sys.argv[1])",
        str(project / "my_pipeline.py"),
        cwd=tmp_path,
        seed="3",
    )
    assert as_script == as_module == imported
    assert "import: my_pipeline:Model" in as_script.replace('"', "")
    assert "name: my-pipeline" in as_script
    assert str(tmp_path) not in as_script
    written = [tmp_path / "written.yaml", project / "written.yaml"]
    assert [file.read_text() for file in written] == [as_script, as_script]


def test_what_compile_wrote_is_read_back_with_the_same_answers_and_bytes(project, tmp_path):
    text = run("my_pipeline.py", cwd=project, seed="1")
    file = project / "p.yaml"
    file.write_text(text)
    code = "import servepipe, sys; p = servepipe.load(sys.argv[1]); print(p.execute(1, 2)); print(p.to_yaml(), end='')"
    printed = run("-c", code, str(file), cwd=tmp_path, seed="2")
    # What the module prints itself, when its code is first needed; 1*(2*1) + 0*(2*2) + 1*(2*2); what it is written as.
    assert printed == text + "6\n" + text
    assert load(file).name == "my-pipeline"


@pytest.mark.parametrize("ending", ["", "DEPLOY = True\n"])
def test_importing_a_pipeline_ends_where_it_would_deploy_or_execute(project, monkeypatch, ending):
    monkeypatch.chdir(project)
    file = project / f"ends_{len(ending)}.py"
    file.write_text(ending + textwrap.dedent(PIPELINE))
    module = loader.load_module(file)
    assert module.reached == "after to_yaml"
    assert not (project / "written.yaml").exists()
    assert module.ray_dag.execute(1, 2) == 6


async def test_awaiting_execution_while_importing_ends_the_import(monkeypatch):
    with ServeInputNode() as i:
        out = ensemble.bind(i)
    monkeypatch.setattr("servepipe.authoring.execution.importing", lambda: True)
    with pytest.raises(loader.EndImport):
        await out.execute_async(1)


class FakeBackend:
    def __init__(self):
        self.calls = []

    def deploy(self, resource, *, import_root):
        self.calls.append((resource.metadata.name, import_root))
        return SimpleNamespace(remote=lambda *args: args)

    def shutdown(self):
        self.calls.append("shutdown")


@pytest.fixture
def installed(monkeypatch):
    """Which entry points are installed; changing the list changes that."""
    points = []
    monkeypatch.setattr(backends, "entry_points", lambda **selection: points)
    return points


@pytest.fixture
def fakes(installed):
    """The backends that were made, of a kind that records what it is told."""
    made = []

    def new(*, namespace=None):
        made.append(FakeBackend())
        made[-1].namespace = namespace
        return made[-1]

    installed.append(SimpleNamespace(load=lambda: new))
    return made


def test_deploy_goes_through_the_entry_point(fakes):
    app = diamond()
    app.shutdown()  # nothing to stop: no error
    assert app.deploy().remote(1) == (1,)
    app.deploy()
    app.shutdown()
    [backend] = fakes
    root = loader.import_root(sys.modules[__name__])
    assert backend.calls == [("test-app", root), ("test-app", root), "shutdown"]
    app.deploy()
    assert len(fakes) == 2


def test_deploy_to_another_target_leaves_the_first(fakes):
    app = diamond()
    app.deploy()
    app.deploy("kubernetes", namespace="shop")
    app.deploy("kubernetes", namespace="shop")
    local, cluster = fakes
    assert local.calls[-1] == "shutdown"
    assert (cluster.namespace, len(cluster.calls)) == ("shop", 2)
    with pytest.raises(ServePipeError, match="unexpected keyword argument 'context'") as caught:
        app.deploy("kubernetes", context="prod")
    assert caught.value.fix == "It takes namespace."


def test_a_missing_backend_names_the_pip_line(installed):
    with pytest.raises(MissingExtraError, match="no backend 'kubernetes'") as caught:
        diamond().deploy("kubernetes")
    assert "pip install 'servepipe[operator]'" in caught.value.fix
    with pytest.raises(MissingExtraError, match="no backend") as caught:
        diamond().deploy()
    assert "pip install 'servepipe[local]'" in caught.value.fix

    def load():
        raise ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp")

    installed.append(SimpleNamespace(load=load))
    with pytest.raises(MissingExtraError, match="needs 'aiohttp'"):
        diamond().deploy()


def test_modules_of_several_folders_cannot_be_deployed(fakes, write_module):
    other = write_module("def elsewhere(x): return x\n")
    with ServeInputNode() as i:
        out = ensemble.bind(remote(other.elsewhere).bind(i))
    with pytest.raises(GraphError, match="several folders"):
        build(out).deploy()
    assert fakes == []


def test_code_in_installed_packages_needs_no_folder(fakes):
    import yaml as package

    with ServeInputNode() as i:
        out = remote(package.safe_load).bind(i)
    build(out, name="library").deploy()
    assert fakes[-1].calls == [("library", None)]


def test_several_outputs_in_the_resource():
    with ServeInputNode() as i:
        a, b = ensemble.bind(i), ensemble.bind(i)
    assert build(MultiOutputNode([a, b])).to_dict()["spec"]["graph"]["output"] == [{"$step": "a"}, {"$step": "b"}]
    assert build({"x": a, "y": [b["k"], 5]}).to_dict()["spec"]["graph"]["output"] == {
        "x": {"$step": "a"},
        "y": [{"$step": ["b", "k"]}, 5],
    }


def test_factories_are_imported_by_the_name_that_holds_their_product(write_module):
    module = write_module("""
        from servepipe import ServeInputNode, build, remote

        def factory(factor):
            class Made:
                def forward(self, x): return factor * x
            return Made

        Five = remote(factory(5))

        @remote
        class Base:
            def forward(self, x): return x

        @remote
        class Child(Base):
            class Inner:
                def forward(self, x): return x

        with ServeInputNode() as i:
            five, child, inner = Five.bind(), Child.bind(), remote(Child._target.Inner).bind()
            out = five.forward.bind(child.forward.bind(inner.forward.bind(i)))
        app = build(out)
    """)
    name = module.__name__
    assert {node: fields["import"] for node, fields in module.app.to_dict()["spec"]["nodes"].items()} == {
        "inner": f"{name}:Child.Inner",
        "child": f"{name}:Child",
        "five": f"{name}:Five",
    }


def test_every_public_name_is_there():
    for name in servepipe.__all__:
        assert getattr(servepipe, name).__module__.startswith("servepipe.")
    assert set(servepipe.__all__) <= set(dir(servepipe))
    assert set(servepipe._HOMES) == set(servepipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = servepipe.nothing


def test_importing_and_compiling_stays_light(tmp_path):
    (tmp_path / "light.py").write_text(
        "import sys\n"
        "from servepipe import ServeInputNode, build, remote\n"
        "heavy = {'ray', 'numpy', 'pydantic', 'yaml', 'kopf', 'kubernetes', 'starlette', 'grpc'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "@remote\n"
        "def double(x): return 2 * x\n"
        "with ServeInputNode() as i:\n"
        "    out = double.bind(i)\n"
        "assert out.execute(2) == 4\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "build(out).to_yaml()\n"
        "heavy -= {'pydantic', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run("light.py", cwd=tmp_path, seed="1")

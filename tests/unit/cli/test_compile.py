import hashlib
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from servepipe.cli import files

Run = Callable[..., Any]
Write = Callable[[str, str], Path]


def compiled(run: Run, *arguments: str | Path) -> dict[str, Any]:
    ran = run("compile", *arguments)
    assert ran.status == 0, ran.err
    content: dict[str, Any] = yaml.safe_load(ran.out)
    return content


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_the_diamond(run: Run, diamond: Path) -> None:
    resource = compiled(run, diamond)
    digest = hashlib.sha256(b"diamond.py\0%d\0" % diamond.stat().st_size + diamond.read_bytes()).hexdigest()
    nodes = resource["spec"].pop("nodes")
    assert {node.pop("code") for node in nodes.values()} == {f"sha256:{digest}"}
    assert nodes["m1"] == {"import": "diamond:Model", "args": [1]}
    assert nodes["m2"] == {"import": "diamond:Model", "args": [2]}
    assert nodes["ensemble"]["import"] == "diamond:ensemble"
    assert resource == {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "diamond"},
        "spec": {
            "graph": {
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
            }
        },
    }


def test_to_a_file(run: Run, diamond: Path) -> None:
    to_stdout = run("compile", diamond)
    to_file = run("compile", diamond, "-o", "out.yaml")
    assert to_file.out == ""
    assert Path("out.yaml").read_text() == to_stdout.out
    assert (
        to_file.err == f"out.yaml: diamond, 3 nodes\nIn an image, the content of {Path.cwd()} belongs on PYTHONPATH.\n"
    )
    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == ["diamond.py", "out.yaml"]


def test_a_file_that_is_there_is_replaced_whole_and_keeps_its_mode(run: Run, diamond: Path) -> None:
    out = Path("out.yaml")
    out.write_text("old\n" * 10_000)
    out.chmod(0o640)
    link = Path("link.yaml")
    link.symlink_to(out)
    assert run("compile", diamond, "-o", link).status == 0
    assert out.read_text() == run("compile", diamond).out
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert link.is_symlink()


def test_a_new_file_has_the_usual_mode(run: Run, diamond: Path) -> None:
    mask = os.umask(0o027)
    try:
        assert run("compile", diamond, "-o", "out.yaml").status == 0
    finally:
        os.umask(mask)
    assert stat.S_IMODE(Path("out.yaml").stat().st_mode) == 0o640


def test_a_device_is_written_to_and_not_replaced(run: Run, diamond: Path) -> None:
    assert run("compile", diamond, "-o", "/dev/null").status == 0
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize(("output", "message"), [("gone/out.yaml", "No such file"), (".", "Is a directory")])
def test_an_output_that_cannot_be_written(run: Run, diamond: Path, output: str, message: str) -> None:
    ran = run("compile", diamond, "-o", output)
    assert ran.status == 2
    assert ran.err.startswith(f"error: {message}")
    assert ran.err.endswith(f"  where: {output}\n")


def test_nothing_is_left_behind_when_writing_fails(run: Run, diamond: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    ran = run("compile", diamond, "-o", "out.yaml")
    assert (ran.status, ran.err) == (2, "error: No space left on device\n  where: out.yaml\n")
    assert [path.name for path in Path().iterdir() if path.is_file()] == ["diamond.py"]


def test_what_the_file_prints_is_not_in_the_yaml(run: Run, write: Write, diamond: Path) -> None:
    write("noisy.py", f"print('hello')\n{diamond.read_text()}")
    ran = run("compile", "noisy.py")
    assert ran.out.startswith("apiVersion: ")
    assert "hello" in ran.err


def test_what_its_child_processes_print_is_not_in_the_yaml_either(write: Write, diamond: Path) -> None:
    write("noisy.py", f"import os\nos.system('echo child')\nos.write(1, b'raw')\n{diamond.read_text()}")
    command = [sys.executable, "-m", "servepipe", "compile", "noisy.py"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith("apiVersion: ")
    assert ran.stderr == "child\nraw"


@pytest.mark.parametrize(
    "ending",
    [
        "app.to_yaml('written.yaml')\n",
        "ray_dag.execute(1, 2, 3)\n",
        "handle = app.deploy()\nassert handle.remote(1, 2, 3).result() == 8\n",
        "import asyncio\nasyncio.run(ray_dag.execute_async(1, 2, 3))\nraise RuntimeError('not reached')\n",
        "def main():\n    app.execute(1, 2, 3)\nmain()\n",
        "from servepipe.testing import TestClient\nwith TestClient(app) as client:\n    1 / 0\n",
        "from servepipe.testing import TestClient\nTestClient(app).post('/', json=[1, 2, 3])\n",
    ],
)
def test_a_file_without_the_guard_compiles_and_runs_nothing(run: Run, write: Write, diamond: Path, ending: str) -> None:
    source = diamond.read_text().replace("return self.val * x", "raise AssertionError('it runs')")
    write("bare.py", source + ending)
    assert compiled(run, "bare.py")["metadata"]["name"] == "diamond"
    assert not Path("written.yaml").exists()


@pytest.mark.parametrize("call", ["ray_dag.execute(1, 2, 3)", "run(ray_dag)"])
def test_a_file_that_executes_before_it_builds(run: Run, write: Write, diamond: Path, call: str) -> None:
    source = diamond.read_text().replace(
        "app = build(", f"def run(dag):\n    dag.execute(1, 2, 3)\n{call}\napp = build("
    )
    write("early.py", source)
    ran = run("compile", "early.py")
    line = source.splitlines().index(call) + 1
    assert ran.status == 2
    assert ran.err.startswith(
        f"error: the import ends here, and no App is built before\n  where: early.py:{line}\n  fix:   `execute` and"
    )
    assert "Write `app = build(...)` before that line" in ran.err


def test_one_app_of_several(run: Run, write: Write, diamond: Path) -> None:
    write(
        "several.py",
        diamond.read_text() + "class Holder:\n    pass\nHolder.staging = build(ray_dag, name='staging')\n"
        "other = build(ray_dag, name='other')\nagain = other\n",
    )
    assert compiled(run, "several.py:other")["metadata"]["name"] == "other"
    assert compiled(run, "several.py:Holder.staging")["metadata"]["name"] == "staging"
    ran = run("compile", "several.py")
    assert ran.status == 2
    assert ran.err == (
        "error: the module builds 2 Apps: app, other\n  where: several.py\n  fix:   Name one: several.py:app\n"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("diamond.py:gone", "the module has no 'gone'\n  where: diamond.py\n  fix:   Its Apps: app."),
        ("diamond.py:ray_dag", "'ray_dag' is of type CallStep, not an App"),
        ("diamond.py:", "the module has no ''"),
        ("empty.py", "the module builds no App"),
        ("gone.py", "gone.py does not exist"),
        ("my-file.py", "my-file.py cannot be imported: 'my-file' is not a Python name"),
        ("time.py", "time.py cannot be imported: its name 'time' belongs to a built-in module"),
        ("out.yaml:app", "out.yaml is not a Python file, so there is no 'app' in it"),
    ],
)
def test_files_without_the_app(run: Run, write: Write, diamond: Path, argument: str, message: str) -> None:
    for name in ("empty.py", "my-file.py", "time.py", "out.yaml"):
        write(name, "")
    ran = run("compile", argument)
    assert ran.status == 2
    assert ran.err.startswith(f"error: {message}\n")
    assert "Traceback" not in ran.err


def test_a_colon_in_the_name_of_the_file(run: Run, write: Write, diamond: Path) -> None:
    write("a:b/diamond.py", diamond.read_text())
    assert compiled(run, "a:b/diamond.py") == compiled(run, diamond)
    assert compiled(run, "a:b/diamond.py:app") == compiled(run, diamond)


def test_an_unused_step_is_refused(run: Run, write: Write, diamond: Path) -> None:
    source = diamond.read_text().replace("    ray_dag =", "    unused = m1.forward.bind(1)\n    ray_dag =")
    write("unused.py", source)
    process = subprocess.run(
        [sys.executable, "-c", "import sys; from servepipe.cli import main; sys.exit(main())", "compile", "unused.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert "error: the output does not need" in process.stderr
    assert "unused.py:23" in process.stderr


# What comes on top


def test_overlays_and_images(run: Run, write: Write, diamond: Path) -> None:
    write("prod.yaml", "spec:\n  nodes:\n    m1: {replicas: 3, image: overlay:1}\n    m2: {replicas: 2}\n")
    write("more.yaml", "spec:\n  nodes:\n    m2: {replicas: 5}\n  ingress: {replicas: 4}\n")
    spec = compiled(
        run,
        diamond,
        "-f",
        "prod.yaml",
        "--overlay",
        "more.yaml",
        "--image",
        "all:1",
        "--image",
        "m1=own:5000/m1@sha256:0a",
    )["spec"]
    assert spec["image"] == "all:1"
    assert spec["ingress"] == {"replicas": 4}
    assert (spec["nodes"]["m1"]["replicas"], spec["nodes"]["m1"]["image"]) == (3, "own:5000/m1@sha256:0a")
    assert spec["nodes"]["m2"]["replicas"] == 5


def test_an_overlay_from_standard_input(run: Run, diamond: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"spec: {nodes: {m1: {replicas: 7}}}")
    assert compiled(run, diamond, "-f", "-")["spec"]["nodes"]["m1"]["replicas"] == 7


@pytest.mark.parametrize(
    ("overlay", "message", "where"),
    [
        ("spec: {nodes: {m3: {replicas: 1}}}", "", "over.yaml: spec.nodes"),
        ("spec: {nodes: {m1: {replcas: 1}}}", "unknown field", "over.yaml: spec.nodes.m1"),
        ("spec: {graph: {steps: []}}", "an overlay cannot change the graph", "over.yaml: spec.graph"),
        ("spec: [", "not YAML", "over.yaml"),
        ("just text", "expected an overlay", "over.yaml"),
        ("spec: {nodes: {m1: {placement: Inline, replicas: 2}}}", "", "over.yaml: spec.nodes.m1"),
    ],
)
def test_an_overlay_that_does_not_fit(
    run: Run, write: Write, diamond: Path, overlay: str, message: str, where: str
) -> None:
    write("over.yaml", overlay)
    ran = run("compile", diamond, "-f", "over.yaml")
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith(f"error: {message}")
    assert f"  where: {where}" in ran.err


@pytest.mark.parametrize(
    ("image", "message", "fix"),
    [
        ("m3=x", "--image names a node 'm3' that there is not", "m1"),
        ("m1=", "--image m1= names no image", "[NODE=]IMG"),
        ("=x", "--image =x names no node", "[NODE=]IMG"),
        ("", "--image  names no image", "[NODE=]IMG"),
    ],
)
def test_an_image_that_does_not_fit(run: Run, diamond: Path, image: str, message: str, fix: str) -> None:
    ran = run("compile", diamond, "--image", image)
    assert ran.status == 2
    assert ran.err.startswith(f"error: {message}\n")
    assert fix in ran.err


def test_an_image_that_is_no_image_names_the_field(run: Run, diamond: Path) -> None:
    ran = run("compile", diamond, "--image", "two words")
    assert ran.status == 2
    assert "spec.image" in ran.err


def test_a_large_resource_is_announced_and_a_huge_one_refused(run: Run, write: Write, diamond: Path) -> None:
    source = diamond.read_text()
    write("large.py", source.replace("Model.bind(1)", "Model.bind('x' * 210 * 1024)"))
    ran = run("compile", "large.py", "-o", "large.yaml")
    assert ran.status == 0
    assert ran.err.startswith("warning: the resource has 21")
    assert "server-side" in ran.err
    write("huge.py", source.replace("Model.bind(1)", "Model.bind('x' * 1100 * 1024)"))
    ran = run("compile", "huge.py")
    assert ran.status == 2
    assert ran.err.startswith("error: the resource has 1")
    assert ran.out == ""


def test_standard_input_that_is_not_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"\xff")
    ran = run("validate", "-")
    assert ran.status == 2
    assert ran.err.startswith("error: this is not UTF-8 text: invalid start byte at byte 0\n  where: standard input\n")


# The same bytes everywhere


def test_the_same_bytes_in_every_process_from_every_folder(tmp_path: Path, diamond: Path) -> None:
    package = tmp_path / "pkg"
    (package / "sub").mkdir(parents=True)
    for folder in (package, package / "sub"):
        (folder / "__init__.py").touch()
    (package / "models.py").write_text("class Extra:\n    def run(self, x): return x\n")
    pipeline = package / "sub" / "pipeline.py"
    source = diamond.read_text().replace(
        "app =",
        "from pkg.models import Extra\n"
        "extra = remote(Extra).bind()\n"
        "out = extra.run.bind({'b': 1, 'a': ray_dag})\n"
        "app =",
    )
    pipeline.write_text(
        source.replace("build(ray_dag", "build(out") + "if __name__ == '__main__':\n    print(app.to_yaml(), end='')\n"
    )
    cli = ["-c", "import sys; from servepipe.cli import main; sys.exit(main())", "compile"]
    commands = [
        ("1", [*cli, "pkg/sub/pipeline.py"], tmp_path),
        ("2", [*cli, str(pipeline)], Path("/")),
        ("3", [*cli, "pipeline.py:app"], pipeline.parent),
        ("4", ["-m", "pkg.sub.pipeline"], tmp_path),
        ("5", [str(pipeline)], Path("/")),
    ]
    outputs = set()
    for seed, arguments, cwd in commands:
        path = str(tmp_path) if seed == "5" else ""
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        outputs.add(process.stdout)
    assert len(outputs) == 1
    text = outputs.pop()
    imports = {name: node["import"] for name, node in yaml.safe_load(text)["spec"]["nodes"].items()}
    assert imports["m1"] == "pkg.sub.pipeline:Model"
    assert imports["extra"] == "pkg.models:Extra"
    assert str(tmp_path) not in text


def test_compiling_imports_neither_ray_nor_kubernetes(diamond: Path) -> None:
    script = """if True:
        import sys
        import servepipe
        heavy = {"ray", "numpy", "kopf", "kubernetes", "pydantic", "starlette", "yaml", "servepipe_operator"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        servepipe.build, servepipe.remote, servepipe.ServeInputNode, servepipe.switch
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        from servepipe.cli import main
        assert main(["compile", "diamond.py", "-o", "/dev/null"]) == 0
        heavy -= {"pydantic", "yaml"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_reading_python_files_one_after_the_other_keeps_them_apart(run: Run, write: Write, diamond: Path) -> None:
    write("a/diamond.py", diamond.read_text())
    write("b/diamond.py", diamond.read_text().replace("Model.bind(2)", "Model.bind(5)"))
    path = list(sys.path)
    ran = run("diff", "a/diamond.py", "b/diamond.py")
    assert ran.status == 1, ran.err
    assert "+      args: [5]" in ran.out
    assert sys.path == path
    assert "diamond" not in sys.modules
    assert files.STANDARD == "-"

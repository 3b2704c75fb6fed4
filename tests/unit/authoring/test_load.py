import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import servepipe
from servepipe import api
from servepipe.authoring import backends, importing, loader
from servepipe.authoring.load import Pipeline, load
from servepipe.errors import CodeMismatchError, GraphError, ImportPathError, ResourceError

SOURCE = """\
from servepipe import ServeInputNode, build, remote, map as map_

@remote
class Scale:
    def __init__(self, factor, *, offset=0.0):
        self.factor, self.offset = factor, offset
    def reconfigure(self, config):
        self.offset = config["offset"]
    def run(self, x):
        return self.factor * x + self.offset

@remote
class Twice:
    def __init__(self, parts):
        self.inner = parts["inner"]
    async def run(self, x):
        return await self.inner.run.remote(x) + await self.inner.run.remote(x)

def to_inputs(request):
    return [1, 2]

def to_answer(value):
    return {"value": value}

with ServeInputNode(preprocessor=to_inputs) as request:
    scale = Scale.bind(2, offset=1e20)
    twice = Twice.bind({"inner": scale})
    one = twice.run.bind(request[0])
    answer = scale.run.bind(one)

app = build(answer, name="loaded", postprocessor=to_answer)
app.scale.set_options(user_config={"offset": 1.0}, max_ongoing_requests=2)
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    with loader.forgetting():
        yield
    importing._for_ever = False


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "loaded.py").write_text(SOURCE)
    with loader.forgetting():
        loader.load_app(tmp_path / "loaded.py").to_yaml(tmp_path / "loaded.yaml")
    return tmp_path / "loaded.yaml"


def test_the_same_answers_and_the_same_bytes(file: Path) -> None:
    with loader.forgetting():
        expected = loader.load_app(file.with_suffix(".py")).execute(3, 4)
    pipeline = servepipe.load(file)
    assert pipeline.execute(3, 4) == expected == 2 * (2 * (2 * 3 + 1.0)) + 1.0
    assert pipeline.to_yaml() == file.read_text()
    pipeline.to_yaml(file.parent / "again.yaml")
    assert (file.parent / "again.yaml").read_bytes() == file.read_bytes()
    assert pipeline.to_dict() == api.read(file).to_json()
    assert (pipeline.name, repr(pipeline)) == ("loaded", "<pipeline loaded: twice, scale>")
    assert pipeline.preprocessor is sys.modules["loaded"].to_inputs
    assert pipeline.postprocessor is sys.modules["loaded"].to_answer
    pipeline.reset()
    pipeline.reset()


EVERY_STEP = """
from servepipe import MultiOutputNode, ServeInputNode, build, fallback, first, map, remote, split, switch


@remote
class Parts:
    def count(self, text, scale=1): return len(text) * scale
    def fail(self, text): raise ValueError(text)


@remote
def joined(*parts, end=None): return [*parts, end]


with ServeInputNode() as i:
    parts = Parts.bind()
    counts = map(lambda word: parts.count.bind(word, scale=i["scale"]), i["words"], concurrency=2)
    safe = fallback(parts.fail.options(timeout=5, retries=1).bind(i["words"][0]), "nothing")
    fast = first(parts.count.bind("abc"), parts.count.bind("xyz"))
    way = switch(i["scale"], {1: safe, "1": "text"}, default=fast)
    drawn = split((100, joined.bind(way, end=(1, 2.0))), (0, counts), on=i["words"])
    both = MultiOutputNode({"counts": counts, "drawn": drawn})

app = build(both, name="everything")
"""


def test_every_kind_of_step_comes_back(tmp_path: Path) -> None:
    (tmp_path / "everything.py").write_text(EVERY_STEP)
    file = tmp_path / "everything.yaml"
    questions = [{"words": ["a", "bb"], "scale": scale} for scale in (1, 2)]
    with loader.forgetting():
        app = loader.load_app(tmp_path / "everything.py")
        app.to_yaml(file)
        expected = [app.execute(**question) for question in questions]
    assert [answer["drawn"][0] for answer in expected] == ["nothing", 3]
    pipeline = servepipe.load(file)
    answers = [pipeline.execute(**question) for question in questions]
    assert answers == expected
    assert answers[0] == {"counts": [1, 2], "drawn": ["nothing", (1, 2.0)]}
    assert pipeline.to_yaml() == file.read_text()


async def test_awaiting_the_answer(file: Path) -> None:
    pipeline = load(str(file))
    assert await pipeline.execute_async(3, 4) == 29.0
    pipeline.reset()


def test_fakes(file: Path) -> None:
    class Fake:
        def run(self, x: Any) -> Any:
            return x

    with load(file).with_fakes(twice=Fake()) as graph:
        assert graph.execute(5, 0) == 11.0
    with pytest.raises(GraphError, match="no node 'twce'"):
        load(file).with_fakes(twce=Fake())


def test_without_hooks(tmp_path: Path, file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if "processor" not in line]
    (tmp_path / "plain.yaml").write_text("\n".join(lines))
    pipeline = load(tmp_path / "plain.yaml")
    assert pipeline.preprocessor is None
    assert pipeline.postprocessor is None


def test_code_is_looked_for_beside_the_file_or_where_told(tmp_path: Path, file: Path) -> None:
    moved = tmp_path / "elsewhere" / "loaded.yaml"
    moved.parent.mkdir()
    file.rename(moved)
    with pytest.raises(ImportPathError, match="module 'loaded' is not found"):
        load(moved).execute(1, 2)
    assert load(moved, root=tmp_path).execute(3, 4) == 29.0


def test_code_of_a_package_is_looked_for_beside_the_package(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "loaded.py").write_text(SOURCE)
    loader.load_app(package / "loaded.py").to_yaml(package / "loaded.yaml")
    assert load(package / "loaded.yaml").execute(3, 4) == 29.0


def test_other_sources_than_those_that_were_compiled(file: Path) -> None:
    source = file.with_suffix(".py")
    source.write_text(SOURCE.replace("self.factor * x", "self.factor - x"))
    with pytest.raises(CodeMismatchError) as caught:
        load(file).execute(1, 2)
    assert caught.value.where == "spec.nodes.twice.code"


def test_a_class_that_is_gone(file: Path) -> None:
    text = "\n".join(line for line in file.read_text().splitlines() if "code:" not in line)
    file.write_text(text.replace("loaded:Scale", "loaded:Gone").replace("twice:", "twice:"))
    with pytest.raises(ImportPathError, match="has no 'Gone'"):
        _ = load(file).definitions


def test_files_that_are_no_pipeline(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"):
        load(tmp_path / "gone.yaml")
    (tmp_path / "broken.yaml").write_text(file.read_text().replace("$step: one", "$step: two"))
    with pytest.raises(ResourceError, match="two"):
        load(tmp_path / "broken.yaml")


def test_deploying_is_left_to_the_backend(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Backend:
        def __init__(self, name: str) -> None:
            assert name == "local"

        def deploy(self, resource: Any, *, import_root: Path | None) -> str:
            seen.append((resource.name, import_root))
            return "handle"

        def shutdown(self) -> None:
            seen.append("shutdown")

    monkeypatch.setattr(backends, "backend", Backend)
    pipeline = load(file)
    pipeline.shutdown()
    assert pipeline.deploy() == "handle"
    assert pipeline.deploy() == "handle"
    pipeline.shutdown()
    assert seen == [("loaded", file.parent), ("loaded", file.parent), "shutdown"]


def test_a_file_that_loads_and_deploys_ends_there_when_it_is_imported(tmp_path: Path, file: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import servepipe\npipeline = servepipe.load('loaded.yaml')\npipeline.deploy()\nafter = 1\n"
    )
    script = "from servepipe.authoring.loader import load_module as l; m = l('other.py'); print(hasattr(m, 'after'))"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert run.stdout == "False\n"


def test_loading_imports_no_user_code(file: Path) -> None:
    file.with_suffix(".py").write_text("raise RuntimeError")
    assert isinstance(load(file), Pipeline)

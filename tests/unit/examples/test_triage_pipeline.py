"""The graph of examples/document_triage: in process, over HTTP, and as a resource."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from servepipe.testing import TestClient

DEDICATED = {"file-type", "text-detection", "orientation", "recognition", "language-detector", "sentiment-analysis"}


@pytest.fixture(scope="module")
def pipeline(triage: SimpleNamespace) -> Any:
    app = triage.pipeline.app
    yield app
    app.reset()


@pytest.fixture(scope="module")
def real_models() -> None:
    for package in ("magika", "lingua", "vaderSentiment", "skimage"):
        pytest.importorskip(package)
    pytest.importorskip("rapidocr_onnxruntime", reason="rapidocr-onnxruntime has no release for Python 3.13")


class FakeModels:
    """One object for all models, which writes down what is asked of it."""

    def __init__(self, kind: str, readable: bool = True) -> None:
        self.kind = kind
        self.readable = readable
        self.calls: list[str] = []

    def identify(self, body: bytes) -> dict[str, Any]:
        self.calls.append("identify")
        return {"kind": self.kind, "type": "zip", "description": "Zip archive data"}

    def find(self, body: bytes) -> dict[str, Any]:
        self.calls.append("find")
        return {"readable": self.readable, "lines": ["one", "", "two"] if self.readable else []}

    def upright(self, lines: list[str]) -> list[str]:
        self.calls.append("upright")
        return [line.upper() for line in lines]

    def read(self, line: str) -> str:
        self.calls.append("read")
        return line

    def detect(self, text: str) -> dict[str, Any]:
        self.calls.append("detect")
        return {"code": "en", "confidence": 1.0}

    def rate(self, text: str) -> dict[str, Any]:
        self.calls.append("rate")
        return {"label": "neutral", "score": 0.0}


def answer_of(pipeline: Any, models: FakeModels, body: bytes = b"body") -> dict[str, Any]:
    fakes = {name.replace("-", "_"): models for name in DEDICATED}
    return pipeline.with_fakes(**fakes).execute(body)


def test_an_image_is_read_line_by_line(pipeline: Any) -> None:
    models = FakeModels("image")

    answer = answer_of(pipeline, models)

    assert answer == {
        "accepted": True,
        "type": "zip",
        "text": "ONE\nTWO",
        "language": {"code": "en", "confidence": 1.0},
        "sentiment": {"label": "neutral", "score": 0.0},
    }
    assert sorted(models.calls) == sorted(["identify", "find", "upright", "read", "read", "read", "detect", "rate"])


def test_a_text_goes_past_the_ocr_models(pipeline: Any) -> None:
    models = FakeModels("text")

    assert answer_of(pipeline, models)["text"] == "body"
    assert sorted(models.calls) == ["detect", "identify", "rate"]


@pytest.mark.parametrize(
    ("models", "asked"),
    [(FakeModels("other"), ["identify"]), (FakeModels("image", readable=False), ["find", "identify"])],
)
def test_what_is_turned_away_asks_no_model_for_nothing(pipeline: Any, models: FakeModels, asked: list[str]) -> None:
    answer = answer_of(pipeline, models)

    assert answer["accepted"] is False
    assert sorted(models.calls) == asked


@pytest.mark.usefixtures("real_models")
def test_every_document_gets_the_expected_answer(
    pipeline: Any, triage: SimpleNamespace, documents: dict[str, bytes]
) -> None:
    wrong = {
        name: triage.samples.differences(wanted, pipeline.execute(documents[name]))
        for name, wanted in triage.samples.expected().items()
    }

    assert {name: problems for name, problems in wrong.items() if problems} == {}


@pytest.mark.usefixtures("real_models")
def test_the_body_is_taken_as_it_comes(pipeline: Any, triage: SimpleNamespace, documents: dict[str, bytes]) -> None:
    with TestClient(pipeline) as client:
        for name in ("complaint-de.txt", "archive.zip", "empty.txt"):
            response = client.post("/", content=documents[name], headers={"content-type": "application/json"})
            assert response.status_code == 200
            assert triage.samples.differences(triage.samples.expected()[name], response.json()) == []


def in_a_process(program: str, folder: Path) -> str:
    """What the program prints; a module that this process has imported already would not be read again."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compiled(project: Path) -> dict[str, Any]:
    document = in_a_process("import pipeline; print(pipeline.app.to_yaml())", project)
    spec: dict[str, Any] = yaml.safe_load(document)["spec"]
    return spec


def test_models_have_processes_of_their_own_and_small_steps_have_none(pipeline: Any) -> None:
    spec = pipeline.to_dict()["spec"]

    assert {name for name, node in spec["nodes"].items() if node.get("placement") != "Inline"} == DEDICATED
    assert spec["graph"]["input"]["preprocessor"] == "answers:body_of"


@pytest.mark.parametrize("number", [0, 1])
def test_a_change_of_the_demo_moves_one_model(triage: SimpleNamespace, tmp_path: Path, number: int) -> None:
    project = tmp_path / "document_triage"
    shutil.copytree(triage.folder, project, ignore=shutil.ignore_patterns("__pycache__"))
    change = triage.demo.CHANGES[number]
    before = compiled(project)

    change.make(project)
    after = compiled(project)

    assert after["graph"] == before["graph"]
    assert [name for name in before["nodes"] if before["nodes"][name] != after["nodes"][name]] == [change.node]


def test_the_pipeline_compiles_without_any_model_package(triage: SimpleNamespace) -> None:
    program = (
        "import sys\n"
        "for name in ('magika', 'rapidocr_onnxruntime', 'cv2', 'lingua', 'vaderSentiment', 'numpy', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "import pipeline\n"
        "print(pipeline.app.to_dict()['kind'])\n"
    )

    assert in_a_process(program, triage.folder) == "ServePipeline\n"

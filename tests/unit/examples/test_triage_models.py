"""The models of examples/document_triage by themselves, against its committed answers."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

OLD = ["en", "de", "fr", "es", "it"]


@pytest.fixture(scope="module")
def file_type(triage: SimpleNamespace) -> Any:
    pytest.importorskip("magika")
    return triage.filetype.FileType()


@pytest.fixture(scope="module")
def ocr(triage: SimpleNamespace) -> SimpleNamespace:
    pytest.importorskip("rapidocr_onnxruntime", reason="rapidocr-onnxruntime has no release for Python 3.13")
    return SimpleNamespace(
        detection=triage.ocr.TextDetection(short_side=480, box_score=0.3),
        orientation=triage.ocr.Orientation(),
        recognition=triage.ocr.Recognition(),
    )


@pytest.fixture(scope="module")
def sentiment(triage: SimpleNamespace) -> Any:
    pytest.importorskip("vaderSentiment")
    return triage.sentiment.Sentiment()


def detector(triage: SimpleNamespace, languages: list[str]) -> Any:
    pytest.importorskip("lingua")
    return triage.language.LanguageDetector(languages)


@pytest.mark.parametrize(
    ("name", "kind", "label"),
    [
        ("page.png", "image", "png"),
        ("cut-short.png", "image", "png"),
        ("complaint-de.txt", "text", "txt"),
        ("notice-en.txt", "text", "txt"),
        ("archive.zip", "other", "zip"),
        ("garbage.bin", "other", "unknown"),
        ("empty.txt", "other", "empty"),
    ],
)
def test_the_bytes_tell_the_kind(file_type: Any, documents: dict[str, bytes], name: str, kind: str, label: str) -> None:
    found = file_type.identify(documents[name])

    assert (found["kind"], found["type"]) == (kind, label)


def test_a_program_is_not_a_text(file_type: Any, triage: SimpleNamespace) -> None:
    found = file_type.identify((triage.folder / "ocr.py").read_bytes())

    assert (found["kind"], found["type"]) == ("other", "python")


def test_the_page_is_read_line_by_line(
    ocr: SimpleNamespace, triage: SimpleNamespace, documents: dict[str, bytes]
) -> None:
    found = ocr.detection.find(documents["page.png"])
    text = triage.answers.page_text([ocr.recognition.read(line) for line in ocr.orientation.upright(found["lines"])])

    phrases = triage.samples.expected()["page.png"]["phrases"]
    assert len(found["lines"]) >= len(phrases) >= 5
    assert triage.samples.differences({"phrases": phrases}, {"text": text}) == []
    places = ["".join(text.split()).index("".join(phrase.split())) for phrase in phrases]
    assert places == sorted(places), "the lines are not in reading order"


def test_a_line_on_its_head_is_turned(ocr: SimpleNamespace, documents: dict[str, bytes]) -> None:
    line = ocr.detection.find(documents["page.png"])["lines"][1]
    on_its_head = line[::-1, ::-1].copy()

    [upright] = ocr.orientation.upright([on_its_head])

    assert (upright == line).all()
    assert "markers" in ocr.recognition.read(upright)
    assert "markers" not in ocr.recognition.read(on_its_head)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_what_is_no_image_is_not_readable(ocr: SimpleNamespace, content: bytes) -> None:
    assert ocr.detection.find(content) == {"readable": False, "lines": []}


def test_a_damaged_image_is_not_readable(ocr: SimpleNamespace, documents: dict[str, bytes]) -> None:
    assert not ocr.detection.find(documents["cut-short.png"])["readable"]


def test_a_blank_page_has_no_lines(ocr: SimpleNamespace) -> None:
    import cv2
    import numpy as np

    _, blank = cv2.imencode(".png", np.full((200, 300, 3), 255, dtype=np.uint8))

    assert ocr.detection.find(blank.tobytes()) == {"readable": True, "lines": []}
    assert ocr.orientation.upright([]) == []


def test_text_on_a_transparent_ground_is_read(ocr: SimpleNamespace, documents: dict[str, bytes]) -> None:
    from PIL import Image

    page = Image.open(io.BytesIO(documents["page.png"])).convert("L")
    black = Image.new("RGBA", page.size, "black")
    black.putalpha(page.point(lambda grey: 255 - grey))
    content = io.BytesIO()
    black.save(content, "PNG")

    lines = ocr.detection.find(content.getvalue())["lines"]

    assert any("markers of the coins" in ocr.recognition.read(line) for line in lines)


def test_lines_of_one_row_are_read_from_the_left(triage: SimpleNamespace) -> None:
    def box(x: int, y: int) -> list[list[int]]:
        return [[x, y], [x + 50, y], [x + 50, y + 12], [x, y + 12]]

    ordered = triage.ocr._in_reading_order([box(90, 1), box(0, 40), box(5, 6), box(80, 38)])

    assert [corners[0] for corners in ordered] == [[5, 6], [90, 1], [0, 40], [80, 38]]


@pytest.mark.parametrize("model", ["TextDetection", "Orientation", "Recognition"])
def test_without_rapidocr_the_error_says_what_to_do(
    triage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)

    with pytest.raises(ImportError, match=r"pip install 'rapidocr-onnxruntime>=1\.4' with Python 3\.11"):
        getattr(triage.ocr, model)()


def test_every_ocr_model_runs_on_one_thread(ocr: SimpleNamespace) -> None:
    sessions = [ocr.detection._detector.infer, ocr.orientation._classifier.infer, ocr.recognition._recognizer.session]

    assert [one.session.get_session_options().intra_op_num_threads for one in sessions] == [1, 1, 1]


@pytest.mark.parametrize("upgraded", [[], ["language"]])
def test_the_language_of_every_text(triage: SimpleNamespace, documents: dict[str, bytes], upgraded: list[str]) -> None:
    detect = detector(triage, OLD + ["nl"] * len(upgraded)).detect
    wanted = {name: want["language"] for name, want in triage.samples.expected(upgraded).items() if "sentiment" in want}

    assert {name: detect(triage.answers.plain_text(documents[name]))["code"] for name in wanted} == wanted
    assert len(wanted) == 8


@pytest.mark.parametrize("text", ["", "123 ... !"])
def test_a_text_without_words_has_no_language(triage: SimpleNamespace, text: str) -> None:
    assert detector(triage, OLD).detect(text) == {"code": None, "confidence": 0.0}


def test_a_language_that_does_not_exist(triage: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"languages=\['en', 'xx'\]: ISO 639-1 codes such as 'en' are expected"):
        detector(triage, ["en", "xx"])


@pytest.mark.parametrize("upgraded", [[], ["sentiment"]])
def test_the_sentiment_of_every_text(
    triage: SimpleNamespace,
    sentiment: Any,
    documents: dict[str, bytes],
    upgraded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if upgraded:
        monkeypatch.setattr(triage.sentiment, "CLEAR_FROM", 0.5)
    wanted = {
        name: want["sentiment"] for name, want in triage.samples.expected(upgraded).items() if "sentiment" in want
    }

    assert {name: sentiment.rate(documents[name].decode())["label"] for name in wanted} == wanted
    assert set(wanted.values()) == ({"positive", "negative", "neutral"} if upgraded else {"positive", "negative"})
    assert sentiment.rate("The box is on the table.") == {"label": "neutral", "score": 0.0}


@pytest.mark.parametrize(
    ("body", "text"),
    [("größer".encode(), "größer"), ("größer".encode("utf-8-sig"), "größer"), ("größer".encode("cp1252"), "größer")],
)
def test_texts_in_old_encodings(triage: SimpleNamespace, body: bytes, text: str) -> None:
    assert triage.answers.plain_text(body) == text


@pytest.mark.parametrize("name", ["cut-short.png", "archive.zip", "garbage.bin", "empty.txt"])
def test_what_is_turned_away_has_a_reason(
    triage: SimpleNamespace, file_type: Any, documents: dict[str, bytes], name: str
) -> None:
    answer = triage.answers.refuse(file_type.identify(documents[name]))

    assert triage.samples.differences(triage.samples.expected()[name], answer) == []


def test_the_documents_are_the_same_every_time_and_each_has_an_expected_answer(
    triage: SimpleNamespace, documents: dict[str, bytes]
) -> None:
    assert triage.samples.documents() == documents
    assert triage.samples.expected().keys() == documents.keys()


def test_differences_are_told_one_by_one(triage: SimpleNamespace) -> None:
    wanted = {"accepted": True, "language": "de", "sentiment": "negative", "phrases": ["a coin", "two coins"]}
    answer = {"accepted": True, "text": "acoin", "language": {"code": "nl"}, "sentiment": {"label": "negative"}}

    assert triage.samples.differences(wanted, answer) == [
        "language is 'nl', not 'de'",
        "the phrase 'two coins' was not read",
    ]
    assert triage.samples.differences({"accepted": False, "reason": "why"}, {"accepted": False}) == [
        "reason is None, not 'why'"
    ]

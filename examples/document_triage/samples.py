"""The documents that the demo and the tests send, and what is to come back for each of them (`expected.json`)."""

import importlib.util
import io
import json
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def documents() -> dict[str, bytes]:
    """Every input by name, in a fixed order: the page, the texts of `inputs/`, and what is to be turned away."""
    page = scanned_page()
    texts = {path.name: path.read_bytes() for path in sorted((HERE / "inputs").glob("*.txt"))}
    refused = {"cut-short.png": page[:400], "archive.zip": archive(texts), "garbage.bin": garbage(), "empty.txt": b""}
    return {"page.png": page} | texts | refused


def scanned_page() -> bytes:
    """`page.png` of scikit-image: a photographed page of its manual, 384 by 191 pixels. Found without importing it."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError("page.png comes with scikit-image: pip install scikit-image")
    return (Path(package.origin).parent / "data" / "page.png").read_bytes()


def archive(files: dict[str, bytes]) -> bytes:
    """A zip of the files, the same bytes every time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def garbage(size: int = 4096) -> bytes:
    """Bytes without meaning, the same every time."""
    return random.Random(0).randbytes(size)


def expected(upgraded: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """What must be in the answer to each document, after the named nodes (`language`, `sentiment`) were upgraded."""
    content = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    answers: dict[str, dict[str, Any]] = content["answers"]
    for node in upgraded:
        for name, changed in content["upgrades"][node].items():
            answers[name] |= changed
    return answers


def differences(wanted: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    """In what an answer is not as wanted, one line for each; nothing when it is.

    Phrases are compared without spaces: RapidOCR drops one here and there.
    """
    got = {
        "accepted": answer.get("accepted"),
        "reason": answer.get("reason"),
        "language": answer.get("language", {}).get("code"),
        "sentiment": answer.get("sentiment", {}).get("label"),
    }
    found = [f"{key} is {got[key]!r}, not {want!r}" for key, want in wanted.items() if key in got and got[key] != want]
    read = "".join(answer.get("text", "").split())
    missing = [phrase for phrase in wanted.get("phrases", ()) if "".join(phrase.split()) not in read]
    return found + [f"the phrase {phrase!r} was not read" for phrase in missing]

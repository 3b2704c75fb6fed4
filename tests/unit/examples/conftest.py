"""The modules of examples/document_triage, imported as that project itself imports them."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[3] / "examples" / "document_triage"
MODULES = ("answers", "demo", "filetype", "language", "load", "local_run", "ocr", "pipeline", "samples", "sentiment")


@pytest.fixture(scope="module")
def triage() -> Iterator[SimpleNamespace]:
    """The project's modules by name, and its `folder`; their names are common, so `sys.modules` forgets them."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(folder=FOLDER, **{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def documents(triage: SimpleNamespace) -> dict[str, bytes]:
    pytest.importorskip("skimage")
    return triage.samples.documents()

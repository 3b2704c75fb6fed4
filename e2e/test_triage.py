"""The document-triage example in pods: real models answer every document as `expected.json` says."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest
from client import Client
from image_set import ImageSet
from resources import ROOT, compiled
from world import World

Say = Callable[[str], None]
EXAMPLE = ROOT / "examples" / "document_triage"


@pytest.fixture(scope="module")
def samples() -> Iterator[object]:
    """The example's own module with what it sends and what is to come back."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import samples

        yield samples
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("samples", None)


def test_every_document_is_answered_as_on_one_machine(world: World, images: ImageSet, samples, say: Say) -> None:
    begun = time.monotonic()
    world.apply(compiled(EXAMPLE / "pipeline.py", images.triage))
    world.wait_settled("document-triage", timeout=600)
    took = time.monotonic() - begun
    documents, wanted = samples.documents(), samples.expected()
    client = Client(world.cluster, world.namespace, images.runtime)
    answers = client.send("http://document-triage:8000/", documents.values(), "application/octet-stream")
    say(f"e2e: document triage: Ready after {took:.0f} s, {len(answers)} documents")
    wrong = {
        name: answer.text if answer.status != 200 else found
        for name, answer in zip(documents, answers, strict=True)
        if answer.status != 200 or (found := samples.differences(wanted[name], answer.json))
    }
    assert wrong == {}

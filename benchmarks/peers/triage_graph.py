"""The example in examples/document_triage as plain Python: its models, and the graph around them, whoever calls them.

The models compute in threads, so that the event loop of their process stays free.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "document_triage"
sys.path.append(str(EXAMPLE))

LANGUAGES = ["en", "de", "fr", "es", "it"]
BUSY = 5
"""``max_ongoing_requests`` of a model, which is servepipe's default too."""

MODELS = ("file_type", "text_detection", "orientation", "recognition", "language_detector", "sentiment_analysis")


def makers() -> Mapping[str, Callable[[], Any]]:
    """What makes each of the models. Imported here: a process needs only its own."""
    import filetype
    import language
    import ocr
    import sentiment

    return {
        "file_type": filetype.FileType,
        "text_detection": lambda: ocr.TextDetection(short_side=480, box_score=0.3),
        "orientation": ocr.Orientation,
        "recognition": ocr.Recognition,
        "language_detector": lambda: language.LanguageDetector(LANGUAGES),
        "sentiment_analysis": sentiment.Sentiment,
    }


def busy(model: str) -> int:
    """How many calls of a model may run at a time."""
    # RapidOCR's detector remembers the image that it is working on: one at a time.
    return 1 if model == "text_detection" else BUSY


class Triage:
    """The graph. Each model has one method of one argument."""

    async def call(self, model: str, method: str, value: Any) -> Any:
        raise NotImplementedError

    async def answer(self, body: bytes) -> Any:
        import answers

        found = await self.call("file_type", "identify", body)
        if found["kind"] == "image":
            page = await self.call("text_detection", "find", body)
            if not page["readable"]:
                return answers.refuse(found)
            lines = await self.call("orientation", "upright", page["lines"])
            text = answers.page_text(await asyncio.gather(*(self.call("recognition", "read", line) for line in lines)))
        elif found["kind"] == "text":
            text = answers.plain_text(body)
        else:
            return answers.refuse(found)
        language, sentiment = await asyncio.gather(
            self.call("language_detector", "detect", text), self.call("sentiment_analysis", "rate", text)
        )
        return answers.report(found, text, language, sentiment)


class Together(Triage):
    """All models in this process."""

    def __init__(self) -> None:
        self._models = {name: make() for name, make in makers().items()}
        self._limits = {name: asyncio.Semaphore(busy(name)) for name in self._models}

    async def call(self, model: str, method: str, value: Any) -> Any:
        async with self._limits[model]:
            return await asyncio.to_thread(getattr(self._models[model], method), value)

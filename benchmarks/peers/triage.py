"""The example in examples/document_triage by hand on Ray Serve: the same classes, another graph around them.

`separate` has a deployment for each model, as the example's resource has; `together` has all of them in one. The models
compute in threads, so that a replica's event loop stays free.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "document_triage"
sys.path.append(str(EXAMPLE))

LANGUAGES = ["en", "de", "fr", "es", "it"]
BUSY = 5
"""``max_ongoing_requests`` of a model, which is servepipe's default too."""


def models() -> dict[str, Any]:
    """What makes each model, by name. Imported here: each replica needs only its own."""
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


class Model:
    """One model; its methods run in threads, at most as many at a time as Serve lets in."""

    def __init__(self, name: str) -> None:
        self._model = models()[name]()

    async def call(self, method: str, *values: Any) -> Any:
        return await asyncio.to_thread(getattr(self._model, method), *values)


class Triage:
    """The example's graph as plain Python."""

    async def call(self, model: str, method: str, *values: Any) -> Any:
        raise NotImplementedError

    async def __call__(self, request: Request) -> Response:
        return Response(orjson.dumps(await self.answer(await request.body())), media_type="application/json")

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


class Separate(Triage):
    def __init__(self, **handles: DeploymentHandle) -> None:
        self._handles = handles

    async def call(self, model: str, method: str, *values: Any) -> Any:
        return await self._handles[model].call.remote(method, *values)


class Together(Triage):
    def __init__(self) -> None:
        self._models = {name: make() for name, make in models().items()}
        # RapidOCR's detector remembers the image that it is working on: one at a time.
        self._limits = {name: asyncio.Semaphore(_busy(name)) for name in self._models}

    async def call(self, model: str, method: str, *values: Any) -> Any:
        async with self._limits[model]:
            return await asyncio.to_thread(getattr(self._models[model], method), *values)


def _busy(model: str) -> int:
    return 1 if model == "text_detection" else BUSY


def separate() -> Application:
    """A deployment for each model, and an ingress."""
    handles = {
        name: serve.deployment(Model, name=name, max_ongoing_requests=_busy(name)).bind(name) for name in models()
    }
    return serve.deployment(Separate, name="ingress", max_ongoing_requests=1000).bind(**handles)


def together() -> Application:
    """Everything in one deployment."""
    return serve.deployment(Together, name="everything", max_ongoing_requests=1000).bind()

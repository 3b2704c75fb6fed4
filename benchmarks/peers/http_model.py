"""One model as an HTTP service of its own: raw ASGI under uvicorn, JSON by orjson.

    MODEL=scale ARGUMENT=2 uvicorn peers.http_model:app

The body is a JSON array of arguments, the answer what the model returns.
"""

from __future__ import annotations

import os

from peers.asgi import Answer, json_app
from workload import models


def _model(name: str, argument: str) -> Answer:
    match name:
        case "echo":
            return models.echo
        case "scale":
            return models.Scale(int(argument)).forward
        case "increment":
            return models.Increment().forward
        case "ensemble":
            return models.ensemble
        case "total":
            return models.total
    raise SystemExit(f"MODEL={name}: there is no such model")


app = json_app(_model(os.environ.get("MODEL", "echo"), os.environ.get("ARGUMENT", "")))

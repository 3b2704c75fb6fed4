"""One model as an HTTP service of its own: raw ASGI under uvicorn, JSON by orjson, arrays as bytes.

    MODEL=scale ARGUMENT=2 uvicorn peers.http_model:app

The body is a JSON array of arguments, the answer what the model returns; of arrays see `peers.arrays`.
"""

from __future__ import annotations

import os

import orjson
from peers import http_triage
from peers.arrays import send_arrays, unpacked
from peers.asgi import App, Receive, Scope, Send, json_app, read_body, send_json, with_lifespan
from peers.batcher import Batcher
from workload import models


def model_app(name: str, argument: str) -> App:
    """The ASGI app of one model."""
    match name:
        case "echo":
            return json_app(models.echo)
        case "scale":
            return json_app(models.Scale(int(argument)).forward)
        case "increment":
            return json_app(models.Increment().forward)
        case "ensemble":
            return json_app(models.ensemble)
        case "total":
            return json_app(models.total)
        case "work":
            return json_app(models.Work().wait)
        case "kernel":
            return json_app(Batcher(models.Kernel().run).one)
        case "source":
            return _source(models.Source(int(argument)))
        case "measure":
            return _measure()
        case "triage":
            return http_triage.model_app(argument)
    raise SystemExit(f"MODEL={name}: there is no such model")


def _source(source: models.Source) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_arrays(send, [await source.get(*orjson.loads(await read_body(receive)))])

    return with_lifespan(app)


def _measure() -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, orjson.dumps(await models.measure(*unpacked(await read_body(receive)))))

    return with_lifespan(app)


app = model_app(os.environ.get("MODEL", "echo"), os.environ.get("ARGUMENT", ""))

"""What the tests of the runtime deploy as user code."""

import asyncio
import os
import threading
from pathlib import Path

import numpy as np
import ray.serve.context as serve_context
from ray import serve

from servepipe.graph.calls import current_request


class Model:
    def __init__(self, val):
        self.val = val

    def forward(self, x):
        return self.val * x


def write(array):
    array[0] = -1
    return array


def ensemble(a, b, c):
    return a + b + c


class OwnError(Exception):
    def __init__(self, part, *, whole):
        super().__init__(f"{part} of {whole}")


class PickyError(ValueError):
    """Can be pickled, but not unpickled: its constructor wants what `args` does not have."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class StickyError(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    def __reduce__(self):
        raise RuntimeError("no pickle")


class Stubborn:
    """An answer that cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()


class Node:
    """Does what it is told; tells what happens to it."""

    def __init__(self, name="node"):
        self.name = name
        self.config = None
        self.events = ["init"]
        self.running = 0
        self.most = 0

    def setup(self):
        self.events.append("setup")

    def reconfigure(self, config):
        if config and config.get("broken"):
            raise ValueError("cannot take this")
        self.config = config
        self.events.append("reconfigure")

    def tell(self, _):
        return {
            "name": self.name,
            "config": self.config,
            "events": self.events,
            "pid": os.getpid(),
            "most": self.most,
            "request": current_request.get().request_id,
        }

    def fail(self, how):
        match how:
            case "value":
                raise ValueError("bad pixel")
            case "own":
                raise OwnError("half", whole="it")
            case "picky":
                raise PickyError("one", "two")
            case "sticky":
                raise StickyError("glue")
            case "mute":
                raise MuteError
            case "exit":
                raise SystemExit(3)
            case "stop":
                raise StopIteration
            case "cancelled":
                raise asyncio.CancelledError
            case "stubborn":
                return Stubborn()
            case "generator":
                return (x for x in "ab")
            case "object":
                return object()
        return how

    async def fail_async(self, how):
        return self.fail(how)

    def block(self, folder):
        """Notes how many threads are in here at once; leaves when the file `go` appears."""
        self.running += 1
        self.most = max(self.most, self.running)
        (Path(folder) / f"in-{threading.get_ident()}").touch()
        while not (Path(folder) / "go").exists():
            threading.Event().wait(0.01)
        self.running -= 1
        return self.most

    async def wait(self, folder):
        """Waits for ever; notes that it began and that it was cancelled."""
        (Path(folder) / "began").touch()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            (Path(folder) / "cancelled").touch()
            raise

    async def after_wait(self, folder):
        """Answers once `wait` has begun."""
        while not (Path(folder) / "began").exists():  # noqa: ASYNC110 - another call makes it
            await asyncio.sleep(0.02)
        return "after"

    def prints(self, path):
        with Path(path).open("w", encoding="utf-8") as file:
            print("one", 2, sep="-", file=file)

    def large(self, size):
        return b"x" * size

    def size(self, data):
        return len(data)

    def array(self, size):
        return np.arange(size) % 10

    def write(self, array):
        return write(array)

    def look(self, *arrays):
        """First and last item of each."""
        return [[int(array[0]), int(array[-1])] for array in arrays]


class Holder:
    """Calls other nodes through handles."""

    def __init__(self, one, others):
        self.one = one
        self.others = others

    def sync(self, x):
        return [self.one.forward.remote(x).result(), *(other.remote(x, x, x).result() for other in self.others)]

    async def async_(self, x):
        first = self.one.forward.remote(x)
        return [await first, *[await other.remote(x, x, x) for other in self.others]]

    async def ask(self, node_method, x):
        return await getattr(self.one, node_method).remote(x)

    def ask_sync(self, node_method, x):
        return getattr(self.one, node_method).remote(x).result()

    def catch(self, x):
        try:
            return self.one.fail.remote(x).result()
        except ValueError as error:
            return f"caught {type(error).__name__}: {error}"


class Broken:
    def __init__(self):
        raise RuntimeError("no weights")


_failing = False


class Frail:
    def __init__(self, flag):
        self.flag = Path(flag)

    def check_health(self):
        if self.flag.exists():
            raise RuntimeError("unwell")

    def __call__(self, x):
        return x


async def preprocess(request):
    asked = await request.json()
    if "short" in asked:
        # A request that came the short way has an id that begins with its replica's; Serve's own are random.
        internal = serve_context._get_serve_request_context()._internal_request_id
        return [0, 0, int(internal.startswith(serve.get_replica_context().replica_id.unique_id))]
    return asked["inputs"]


def postprocess(output):
    return {"answer": output}

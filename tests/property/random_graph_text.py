"""The fixed text of the modules that `random_graphs` generates."""

NODES_PRELUDE = '''\
"""Generated: the nodes of a random graph, and what the graph means in plain Python."""
import asyncio
import hashlib
import json
import threading
from collections import Counter

CALLS = Counter()
HANGING = Counter()
LOCK = threading.Lock()


def count(key):
    with LOCK:
        CALLS[key] += 1
        return CALLS[key]


def mix(*parts):
    """A value with something for every use: to switch on, to map over, to index."""
    h = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")
    items = [h % 7, {"v": h % 5}, [1.5, None]][: h % 4]
    return {"v": h % 997, "k": h % 3, "b": h % 2 == 0, "w": "abc"[h % 3], "l": items}


async def pause(times):
    for _ in range(times):
        await asyncio.sleep(0)


class Base:
    async def bad(self, step, pauses, *args, **kwargs):
        count(step)
        await pause(pauses)
        raise ValueError(step)

    def bad_in_thread(self, step, pauses, *args, **kwargs):
        count(step)
        raise ValueError(step)

    async def flaky(self, step, failures, *args, **kwargs):
        if count(step) <= failures:
            raise ValueError(step)
        return mix(self.salt, step, args, sorted(kwargs.items()))

    async def hang(self, step, *args, **kwargs):
        count(step)
        HANGING[step] += 1
        try:
            await asyncio.Event().wait()
        finally:
            HANGING[step] -= 1

    async def counts(self):
        """For nodes in processes of their own: the calls that this process has counted."""
        return dict(CALLS)

    async def hanging(self):
        """The steps whose calls have not been cancelled yet in this process."""
        return dict(+HANGING)
'''

LEAF = """

class {name}(Base):
    def __init__(self, salt, **extra):
        self.salt = [salt, extra]

    async def f(self, step, pauses, *args, **kwargs):
        count(step)
        await pause(pauses)
        return mix(self.salt, step, args, sorted(kwargs.items()))

    def g(self, step, pauses, *args, **kwargs):
        count(step)
        return mix(self.salt, step, args, sorted(kwargs.items()))


def call_{name}(step, *args, **kwargs):
    return mix([{salt!r}, {extra!r}], step, args, sorted(kwargs.items()))
"""

FUNCTION = """

{word}def {name}(step, pauses, *args, **kwargs):
    count(step)
    return mix("function", step, args, sorted(kwargs.items()))


def call_{name}(step, *args, **kwargs):
    return mix("function", step, args, sorted(kwargs.items()))
"""

HOLDER = """

class {name}(Base):
    def __init__(self, salt, held):
        self.salt = salt
        self.held = held["inside"] if isinstance(held, dict) else held if isinstance(held, list) else [held]

    async def f(self, step, pauses, *args, **kwargs):
        count(step)
        under_way = [handle.f.remote(step + "/held", pauses, *args) for handle in self.held]
        return mix(self.salt, step, args, sorted(kwargs.items()), [await response for response in under_way])

    def g(self, step, pauses, *args, **kwargs):
        count(step)
        inside = [handle.f.remote(step + "/held", pauses, *args).result(60) for handle in self.held]
        return mix(self.salt, step, args, sorted(kwargs.items()), inside)


def call_{name}(step, *args, **kwargs):
    inside = [call(step + "/held", *args) for call in [{held}]]
    return mix({salt!r}, step, args, sorted(kwargs.items()), inside)
"""

REFERENCE_PRELUDE = '''

class Failed(Exception):
    def __init__(self, steps):
        self.steps = frozenset(steps)


class Hangs(Exception):
    pass


class Once:
    """A step that was reached: its outcome, and the groups of steps that it needed (with: surely?)."""

    def __init__(self, name):
        self.name, self.ok, self.value, self.steps, self.groups = name, None, None, frozenset(), []


def once(memo, name, body):
    if name not in memo:
        me = memo[name] = Once(name)
        REACHED.append(me)
        try:
            me.value = body(me)
            me.ok = True
        except Failed as failed:
            me.ok, me.steps = False, failed.steps
        except Hangs:
            me.ok = None
    return memo[name]


def need(me, *steps, surely=True):
    group = [step() for step in steps]
    me.groups.append((surely, group))
    failed = [each for each in group if each.ok is False]
    if failed:
        raise Failed(name for each in failed for name in each.steps)
    if any(each.ok is None for each in group):
        raise Hangs


def one_of(me, options):
    """Only one of the options can succeed; the others may or may not have been called."""
    won, last = [], None
    for steps, value in options:
        before = len(me.groups)
        try:
            need(me, *steps, surely=False)
            won.append((before, value))
        except Failed as failed:
            last = failed
        except Hangs:
            pass
    if not won:
        raise last
    ((index, value),) = won
    me.groups[index] = (True, me.groups[index][1])
    return value()


def each_of(me, items, body):
    """One call of body per item, all tried; it returns the steps that the item needs and how to read its value."""
    values, failed, first = [], [], len(me.groups)
    for item in items:
        steps, value = body(item)
        try:
            need(me, *steps, surely=False)
            values.append(value())
        except Failed as error:
            failed.append((len(me.groups) - 1, error))
    if not failed:
        me.groups[first:] = [(True, group) for _, group in me.groups[first:]]
        return values
    if len(failed) == 1:
        index = failed[0][0]
        me.groups[index] = (True, me.groups[index][1])
    raise Failed(name for _, error in failed for name in error.steps)


def call_flaky(salt, step, *args, **kwargs):
    return mix(salt, step, args, sorted(kwargs.items()))


def bucket_of(step, value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return int.from_bytes(hashlib.sha256((step + "\\0" + text).encode()).digest()[:8], "big") % 100


REACHED = []


def reference(*args, **kwargs):
    del REACHED[:]
    data = args[0] if len(args) == 1 and not kwargs else None
    memo_ = {}
'''

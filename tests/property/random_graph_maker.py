"""How `random_graphs` makes a graph: steps one after the other, each for the graph and as Python text at once."""

from __future__ import annotations

import random
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from random_graph_text import FUNCTION, HOLDER, LEAF, NODES_PRELUDE, REFERENCE_PRELUDE

from servepipe.graph import ir

MAX_MAP_DEPTH = 3


@dataclass
class Made:
    """An expression: for the graph, as Python text, the steps that the text needs, the items that it names."""

    expr: ir.Expr
    text: str
    steps: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    is_mix: bool = False  # has the keys of `mix`


@dataclass
class Drawn:
    """A step with the body of the Python function that means the same."""

    step: ir.Step
    body: list[str]
    uses: set[str]
    items: set[str]
    each: Made | None = None  # for a map
    scope: set[str] = field(default_factory=set)


class Maker:
    def __init__(self, seed: int, size: int) -> None:
        self.draw = random.Random(f"{seed}/{size}")
        self.size = size
        self.steps: dict[str, Drawn] = {}
        self.pools: list[list[Made]] = [[]]  # values by the depth of maps at which they can be used
        self.open_maps: list[tuple[str, bool]] = []  # maps under construction: name, whether items have "v"
        self.attempts: dict[str, dict[str, int]] = {}
        self.kinds: Counter[str] = Counter()
        self.reserved = 0  # maps under construction, which are no steps yet
        self.named = 0
        self.make_nodes()
        self.make_input()

    # Nodes and input.

    def make_nodes(self) -> None:
        self.nodes: dict[str, tuple[str, tuple[ir.Expr, ...], tuple[tuple[str, ir.Expr], ...]]] = {}
        self.held: dict[str, list[str]] = {}
        self.classes: list[str] = []
        self.functions: list[str] = []
        self.node_text: list[str] = []
        for number in range(self.draw.randint(2, 6)):
            name, target, salt = f"n{number}", f"N{number}", self.draw.randrange(100)
            chance = self.draw.random()
            if chance < 0.2:
                is_async = self.draw.random() < 0.5
                self.kinds["async function node" if is_async else "function node"] += 1
                self.node_text.append(FUNCTION.format(name=target, word="async " if is_async else ""))
                self.nodes[name] = (target, (), ())
                self.functions.append(name)
                continue
            self.held[name] = []
            if chance < 0.5 and self.classes:
                held = [self.draw.choice(self.classes) for _ in range(self.draw.randint(1, 2))]
                refs = tuple(ir.NodeRef(node) for node in held)
                form = "handle" if len(held) == 1 and self.draw.random() < 0.5 else self.draw.choice(["list", "dict"])
                arg: ir.Expr = {
                    "handle": refs[0],
                    "list": ir.ListOf(refs),
                    "dict": ir.DictOf((("inside", ir.ListOf(refs)),)),
                }[form]
                self.kinds[f"holder of a {form}"] += 1
                self.held[name] = held
                calls = ", ".join(f"call_{node.upper()}" for node in held)
                self.node_text.append(HOLDER.format(name=target, salt=salt, held=calls))
                self.nodes[name] = (target, (ir.Const(salt), arg), ())
            else:
                extra = {"x": [1, None]} if self.draw.random() < 0.5 else {}
                self.node_text.append(LEAF.format(name=target, salt=salt, extra=extra))
                self.nodes[name] = (target, (ir.Const(salt),), tuple((k, ir.Const(v)) for k, v in extra.items()))
            self.classes.append(name)
        if not self.classes:
            self.nodes["n9"] = ("N9", (ir.Const(9),), ())
            self.node_text.append(LEAF.format(name="N9", salt=9, extra={}))
            self.held["n9"] = []
            self.classes.append("n9")

    def make_input(self) -> None:
        numbers = [self.draw.randrange(9) for _ in range(self.draw.randrange(4))]
        deep = {"a": [self.draw.randrange(9), {"b": "x"}], "name": "y", "numbers": numbers}
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        attr = ir.Attr
        match self.draw.choice(["value", "mapping", "list", "several", "keywords"]):
            case "value":
                self.args = (self.draw.randrange(99),)
                paths = [((), "data"), ((attr("real"),), "data")]
                self.kinds["input: one value"] += 1
            case "mapping":
                self.args = (deep,)
                paths = [((), "data"), (("a", 0), 'data["a"][0]'), ((attr("a"), 1, attr("b")), 'data["a"][1]["b"]')]
                paths += [((attr("numbers"),), 'data["numbers"]'), (("name",), 'data["name"]')]
                self.kinds["input: nested mapping"] += 1
            case "list":
                self.args = ([numbers, deep],)
                paths = [((0,), "data[0]"), ((1, "name"), 'data[1]["name"]'), ((-1, attr("a")), 'data[-1]["a"]')]
                self.kinds["input: one list"] += 1
            case "several":
                self.args = (self.draw.randrange(9), numbers, deep)
                paths = [((0,), "args[0]"), ((1,), "args[1]"), ((2, "a", 1, "b"), 'args[2]["a"][1]["b"]')]
                self.kinds["input: several positional"] += 1
            case _:
                self.args, self.kwargs = (numbers,), {"deep": deep, "n": 5}
                paths = [((0,), "args[0]"), (("n",), 'kwargs["n"]'), ((attr("deep"), "a", 0), 'kwargs["deep"]["a"][0]')]
                self.kinds["input: with keywords"] += 1
        self.inputs = [Made(ir.InputRef(path), text) for path, text in paths]
        self.numbers = [made for made in self.inputs if made.text.endswith(('["numbers"]', "args[1]", "data[0]"))] or [
            Made(ir.Const(numbers), repr(numbers))
        ]

    # Expressions.

    def mixes(self) -> list[Made]:
        return [made for pool in self.pools for made in pool if made.is_mix]

    def known(self) -> list[Made]:
        return [made for pool in self.pools for made in pool]

    def value(self, depth: int = 0) -> Made:
        """Some expression of what there is already."""
        chance = self.draw.random()
        known = self.known()
        if chance < 0.15 and depth < 3:
            return self.container([self.value(depth + 1) for _ in range(self.draw.randrange(4))])
        if chance < 0.3 or (not known and chance < 0.6):
            self.kinds["input read"] += 1
            return self.draw.choice(self.inputs)
        if chance < 0.4 or (not known and not self.open_maps):
            constant = self.draw.choice([7, "text", None, 2.5, True, [1, [2, None]], {"a": {"b": []}}])
            self.kinds["constant"] += 1
            return Made(ir.Const(constant), repr(constant))
        if self.open_maps and (chance < 0.65 or not known):
            return self.item()
        if chance > 0.85 and (mixes := self.mixes()):
            return self.part(self.draw.choice(mixes), self.draw.choice("vkbwl"))
        # The latest ones more often: that makes deep graphs.
        return known[-1] if self.draw.random() < 0.4 else self.draw.choice(known)

    def part(self, made: Made, key: str) -> Made:
        assert isinstance(made.expr, ir.StepRef)
        self.kinds["part of a step"] += 1
        step: ir.Key = ir.Attr(key) if self.draw.random() < 0.2 else key
        return Made(ir.StepRef(made.expr.step, (step,)), f"{made.text}[{key!r}]", made.steps)

    def item(self) -> Made:
        name, has_v = self.draw.choice(self.open_maps)
        path = ("v",) if has_v and self.draw.random() < 0.5 else ()
        self.kinds["part of an item" if path else "item"] += 1
        return Made(ir.ItemRef(name, path), f"item_{name}" + "".join(f"[{key!r}]" for key in path), (), (name,))

    def container(self, inside: Sequence[Made]) -> Made:
        exprs, texts = tuple(made.expr for made in inside), [made.text for made in inside]
        form = self.draw.choice(["list", "tuple", "dict"])
        self.kinds[f"{form} of expressions"] += 1
        expr: ir.Expr
        if form == "list":
            expr, text = ir.ListOf(exprs), f"[{', '.join(texts)}]"
        elif form == "tuple":
            expr, text = ir.TupleOf(exprs), f"({''.join(t + ', ' for t in texts)})"
        else:
            expr = ir.DictOf(tuple((f"k{i}", each) for i, each in enumerate(exprs)))
            text = "{" + ", ".join(f'"k{i}": {t}' for i, t in enumerate(texts)) + "}"
        return Made(expr, text, together(inside), tuple(name for made in inside for name in made.items))

    # Steps.

    def room(self) -> int:
        return self.size - len(self.steps) - self.reserved

    def add(self, step: ir.Step, body: list[str], uses: Sequence[Made], *, is_mix: bool = False, **more: Any) -> Made:
        used, items = set(together(uses)), {name for made in uses for name in made.items}
        self.steps[step.name] = Drawn(step, body, used, items, **more)
        return Made(ir.StepRef(step.name), f"{step.name}().value", (step.name,), is_mix=is_mix)

    def new_name(self) -> str:
        self.named += 1
        return f"s{self.named}"

    def call(self, how: str = "") -> Made:
        """A call of a node; ``how``: bad always fails, hang never ends, else it answers, perhaps at a second try."""
        name, args = self.new_name(), [self.value() for _ in range(self.draw.randrange(4))]
        named = {key: self.value() for key in self.draw.sample(["a", "b"], self.draw.choice([0, 0, 1, 2]))}
        uses, in_map = [*args, *named.values()], bool(self.open_maps)
        node, method, times = self.draw.choice(self.classes), "f", 1
        retries, timeout = 0, None
        fails = how in ("bad", "timeout")
        text_args = "".join(f", {made.text}" for made in args)
        text_args += "".join(f", {key}={made.text}" for key, made in named.items())
        second: ir.Expr = ir.Const(self.draw.randrange(4))
        if how == "bad":
            method = self.draw.choice(["bad", "bad", "bad_in_thread"])
            retries = self.draw.choice([0, 0, 2])
        elif how in ("hang", "timeout"):
            method = "hang"
            if how == "timeout":
                timeout, retries = 0.005, self.draw.choice([0, 0, 1])
        elif self.draw.random() < 0.1 and not in_map:
            method, failures, retries = "flaky", self.draw.randrange(3), 2
            times, second = failures + 1, ir.Const(failures)
        elif self.functions and self.draw.random() < 0.25:
            node, method = self.draw.choice(self.functions), ""
        else:
            method = self.draw.choice("fffg")
            timeout = 60.0 if self.draw.random() < 0.05 else None
        self.kinds[f"call: {how or method or 'function'}"] += 1
        self.kinds["retries"] += bool(retries)
        self.kinds["timeout"] += timeout is not None
        key, ir_args = ir.Const(name), [made.expr for made in args]
        step = ir.Call(
            name,
            node,
            method or None,
            (key, *ir_args) if method == "hang" else (key, second, *ir_args),
            tuple((word, made.expr) for word, made in named.items()),
            timeout,
            retries,
        )
        times = retries + 1 if fails else times
        self.attempts[name] = {
            path: count * times
            for path, count in (self.calls_of(node, name) if method in ("f", "g") else {name: 1}).items()
        }
        answer = f"return call_{node.upper()}({name!r}{text_args})"
        if method == "flaky":  # of Base, which knows nothing of handles
            salt = f"{node.upper()}_SALT"
            answer = f"return call_flaky({salt}, {name!r}{text_args})"
        ending = f"raise Failed([{name!r}])" if fails else "raise Hangs" if how == "hang" else answer
        return self.add(step, [needs(uses), ending], uses, is_mix=True)

    def calls_of(self, node: str, key: str) -> Counter[str]:
        calls = Counter({key: 1})
        for held in self.held.get(node, ()):
            calls.update(self.calls_of(held, f"{key}/held"))
        return calls

    def branch(self) -> Made:
        """What a branch evaluates: often a step of its own, which runs only if the branch is taken."""
        if self.room() > 1 and self.draw.random() < 0.6:
            return self.call("bad" if self.draw.random() < 0.03 else "")
        return self.value()

    def switch(self) -> Made:
        key, known = self.draw.choice([("k", [0, 1, 2]), ("b", [True, False]), ("w", ["a", "b", "c"])])
        on = self.part(self.draw.choice(self.mixes()), key)
        whens: list[Any] = self.draw.sample(known, self.draw.randint(1, len(known)))
        if key == "k" and self.draw.random() < 0.3:
            whens.insert(0, True)  # equal to 1, but of another type
        complete = set(map(repr, known)) <= set(map(repr, whens))
        with_default = not complete and self.draw.random() < 0.95
        cases = [(when, self.branch()) for when in whens]
        default = self.branch() if with_default else None
        name = self.new_name()
        body = [needs([on]), f"on = {on.text}"]
        for when, made in cases:
            body += [f"if type(on) is {type(when).__name__} and on == {when!r}:", *answer(made, "    ")]
        body += answer(default) if default else [f"raise Failed([{name!r}])"]
        self.kinds["switch with default" if default else "switch"] += 1
        step = ir.Switch(
            name, on.expr, tuple((when, made.expr) for when, made in cases), default.expr if default else None
        )
        return self.add(step, body, [on, *(made for _, made in cases), *([default] if default else [])])

    def split(self) -> Made:
        first = self.draw.choice([0, 100, 30, 50])
        on = self.part(self.draw.choice(self.mixes()), self.draw.choice("vwl")) if first in (30, 50) else None
        weights = [first, 100 - first]
        if on and self.draw.random() < 0.5:
            weights = [first, 20, 80 - first]
        branches = [(weight, self.branch()) for weight in weights]
        name = self.new_name()
        body = [needs([on]), f"bucket = bucket_of({name!r}, {on.text})"] if on else ["bucket = 0"]
        total = 0
        for weight, made in branches:
            total += weight
            body += [f"if bucket < {total}:", *answer(made, "    ")]
        self.kinds["split by value" if on else "split"] += 1
        step = ir.Split(name, tuple((weight, made.expr) for weight, made in branches), on.expr if on else None)
        return self.add(step, body, [*([on] if on else []), *(made for _, made in branches)])

    def map(self) -> Made:
        outer = self.new_name()
        chance, has_v = self.draw.random(), False
        if chance < 0.35 and (mixes := self.mixes()):
            over = self.part(self.draw.choice(mixes), "l")
        elif chance < 0.6 or self.open_maps:
            over = self.draw.choice(self.numbers)
        else:
            constant = [{"v": self.draw.randrange(9)} for _ in range(self.draw.randrange(4))]
            over, has_v = Made(ir.Const(constant), repr(constant)), True
        self.kinds["map in a map" if self.open_maps else "map"] += 1
        self.open_maps.append((outer, has_v))
        self.pools.append([])
        self.reserved += 1
        self.fill(min(self.room(), self.draw.randint(1, 8)))
        self.reserved -= 1
        inside = [made for made in self.pools[-1] if self.draw.random() < 0.7] or [self.value()]
        each = self.container([*inside, self.item()]) if self.draw.random() < 0.5 else inside[-1]
        self.pools.pop()
        self.open_maps.pop()
        concurrency = self.draw.choice([None, None, 1, 2])
        self.kinds["map with concurrency"] += concurrency is not None
        step = ir.Map(outer, over.expr, each.expr, concurrency)
        body = [needs([over]), f"return each_of(me, {over.text}, item)"]
        return self.add(step, body, [over, each], each=each)

    def fallback(self) -> Made:
        options = [self.call(self.draw.choice(["bad", "bad", "timeout"])) for _ in range(self.draw.randint(1, 2))]
        if self.draw.random() < 0.3 and len(options) == 1 and self.room() > 1:
            # Fails because of an argument, while what it shares with others goes on.
            shared = self.container([options[0], self.value(), self.value()])
            options = [shared]
        if self.draw.random() < 0.97:
            options.append(self.branch())
        name = self.new_name()
        body = []
        for made in options:
            body += ["try:", *answer(made, "    "), "except Failed as error:", "    last = error"]
        self.kinds["fallback"] += 1
        return self.add(ir.Fallback(name, tuple(made.expr for made in options)), [*body, "raise last"], options)

    def first(self) -> Made:
        if self.draw.random() < 0.5:
            # A loser that never ends; the other option must not fail.
            candidate = self.value()
            name = self.new_name()
            body = ["try:", *answer(candidate, "    "), "except Failed as error:", "    return 'safe'"]
            options = (candidate.expr, ir.Const("safe"))
            good = self.add(ir.Fallback(name, options), body, [candidate])
            losers = [self.call("hang")]
            self.kinds["first with a loser that never ends"] += 1
        else:
            good = self.branch()
            losers = [self.call("bad") for _ in range(self.draw.randint(1, 2))]
            self.kinds["first with losers that fail"] += 1
        options_made = [*losers, good]
        self.draw.shuffle(options_made)
        name = self.new_name()
        texts = ", ".join(f"([{', '.join(made.steps)}], lambda: {made.text})" for made in options_made)
        step = ir.First(name, tuple(made.expr for made in options_made))
        return self.add(step, [f"return one_of(me, [{texts}])"], options_made)

    # The whole.

    def fill(self, count: int) -> None:
        """Add about ``count`` steps that others may use."""
        enough = len(self.steps) + count
        while len(self.steps) < enough and self.room() > 0:
            chance, room = self.draw.random(), min(self.room(), enough + 2 - len(self.steps))
            if chance < 0.12 and room >= 5 and self.mixes():
                made = self.switch()
            elif chance < 0.2 and room >= 4 and self.mixes():
                made = self.split()
            elif chance < 0.32 and room >= 3 and len(self.open_maps) < MAX_MAP_DEPTH:
                made = self.map()
            elif chance < 0.42 and room >= 4:
                made = self.fallback()
            elif chance < 0.5 and room >= 5:
                made = self.first()
            else:
                made = self.call("bad" if self.draw.random() < 0.003 else "")
            self.pools[-1].append(made)

    def output(self) -> Made:
        used = {name for drawn in self.steps.values() for name in drawn.uses}
        sinks = [made for made in self.pools[0] if made.steps[0] not in used]
        if self.draw.random() < 0.15 and len(sinks) > 1:
            sinks.pop(self.draw.randrange(len(sinks)))
            self.kinds["unused step"] += 1
        return sinks[0] if len(sinks) == 1 else self.container(sinks)

    def make(self) -> tuple[ir.Graph, str]:
        """The graph and the module's source."""
        self.fill(self.size)
        output = self.output()
        self.find_scopes()
        lines = [*self.functions_of(None), "def output(me):", *answer(output, "    "), 'return once(memo_, "", output)']
        reference = REFERENCE_PRELUDE + textwrap.indent("\n".join(lines), "    ") + "\n"
        salts = "".join(f"\n{name.upper()}_SALT = {self.salt_text(name)}" for name in self.classes)
        source = NODES_PRELUDE + "".join(self.node_text) + "\n" + salts + "\n" + reference
        steps = tuple(drawn.step for drawn in self.steps.values())
        return ir.Graph(steps, output.expr), source

    def salt_text(self, node: str) -> str:
        _, args, kwargs = self.nodes[node]
        assert isinstance(args[0], ir.Const)
        extra = {key: value.value for key, value in kwargs if isinstance(value, ir.Const)}
        return repr(args[0].value if len(args) == 2 else [args[0].value, extra])

    def find_scopes(self) -> None:
        """For each step the maps whose items it depends on, by trying until nothing changes."""
        changed = True
        while changed:
            changed = False
            for name, drawn in self.steps.items():
                scope = set(drawn.items)
                for other in drawn.uses | drawn.items:
                    scope |= self.steps[other].scope
                scope.discard(name)
                if scope != drawn.scope:
                    drawn.scope, changed = scope, True

    def functions_of(self, home: str | None) -> list[str]:
        """The functions of the steps that live in items of map ``home``; None: those that run once."""
        lines = []
        for name, drawn in self.steps.items():
            innermost = max(sorted(drawn.scope), key=lambda each: len(self.steps[each].scope), default=None)
            if innermost != home:
                continue
            lines += [f"def {name}():", "    def body(me):"]
            if drawn.each is not None:
                lines += [f"        def item(item_{name}):", f"            memo_{name} = {{}}"]
                lines += ["            " + line for line in self.functions_of(name)]
                lines += [f"            return [{', '.join(drawn.each.steps)}], lambda: {drawn.each.text}"]
            lines += ["        " + line for line in drawn.body]
            lines += [f"    return once(memo_{home or ''}, {name!r}, body)"]
        return lines


def together(made: Sequence[Made]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in made for name in each.steps))


def needs(made: Sequence[Made]) -> str:
    return f"need(me{''.join(', ' + name for name in together(made))})"


def answer(made: Made, indent: str = "") -> list[str]:
    return [f"{indent}{needs([made])}", f"{indent}return {made.text}"]

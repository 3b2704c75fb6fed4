"""Values survive kubectl, an API server and both kinds of YAML readers; the canonical text is a fixed point.

The model of the cluster shares no code with servepipe: it knows how Go's JSON prints and reads numbers, what `kubectl
apply` drops, and how YAML 1.1 resolves plain scalars.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_values import NAMES, TEXT, VALUES, exactly

from servepipe import api
from servepipe.api.yaml_reader import read_yaml
from servepipe.graph.wire import decode_value, encode_value

SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

# --- A model of the cluster -------------------------------------------------------------------------------------------


def go_number(value: float) -> str:
    """A float64 as Go's encoding/json prints it."""
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"


def go_json(value: Any) -> str:
    """What Go prints for decoded JSON: sorted keys, integral floats without a point."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{go_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(go_json, value)) + "]"
    return go_number(value) if isinstance(value, float) else json.dumps(value)


def api_server_reads(text: str) -> Any:
    """JSON as sigs.k8s.io/json decodes it: integers that fit are int64, all other numbers float64."""

    def integer(digits: str) -> int | float:
        return int(digits) if -(2**63) <= int(digits) < 2**63 else float(digits)

    return json.loads(text, parse_int=integer)


def without_nulls(value: Any) -> Any:
    """What a merge patch leaves of a new object: nulls in objects mean "remove"."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


class GoLoader(yaml.SafeLoader):
    """PyYAML's parser with the resolution of plain scalars as in kubectl's YAML."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name and shape


def _go_scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style is not None:
        return text
    if text in ("", "~") or text.lower() == "null":
        return None
    if text.lower() in ("y", "yes", "on", "true", "n", "no", "off", "false"):
        return text.lower() in ("y", "yes", "on", "true")
    digits = text.replace("_", "")
    for pattern, base in ((r"0[xX][0-9a-fA-F]+", 16), (r"0b[01]+", 2), (r"0o?[0-7]+", 8), (r"[0-9]+", 10)):
        if re.fullmatch(rf"[-+]?{pattern}", digits):
            number = re.sub(r"^([-+]?)0[xXbo]?(?=.)", r"\1", digits) if base != 10 else digits
            return int(number, base)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", digits) and math.isfinite(float(digits)):
        return float(digits)
    return text


GoLoader.add_constructor("tag:yaml.org,2002:str", _go_scalar)


def kubectl_reads(text: str) -> Any:
    return yaml.load(text, Loader=GoLoader)


class GoDumper(yaml.SafeDumper):
    """`kubectl get -o yaml`: floats with an exponent that PyYAML would not read, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        # Else PyYAML would write !!float in front of what it does not read as a float itself.
        if kind is yaml.ScalarNode and implicit[0] and re.fullmatch(r"-?[0-9.]+e[-+][0-9]+", value):
            return "tag:yaml.org,2002:float"
        return super().resolve(kind, value, implicit)


def _float_in_yaml(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    # Go's YAML goes over to exponents earlier than its JSON, in Python's form: 5e-05.
    text = go_number(value) if 1e-4 <= abs(value) < 1e16 else repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _quoted(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"')


GoDumper.add_representer(float, _float_in_yaml)
GoDumper.add_representer(str, _quoted)


def through_a_cluster(text: str, *, reader: Any) -> list[str]:
    """Apply the document in ``text``; what `kubectl get` prints as JSON and as YAML."""
    stored = without_nulls(api_server_reads(go_json(reader(text))))
    in_yaml = yaml.dump(stored, Dumper=GoDumper, allow_unicode=False, width=10_000)
    return [go_json(stored), in_yaml]


# --- Values -----------------------------------------------------------------------------------------------------------


@SETTINGS
@given(VALUES)
def test_a_value_comes_back_from_its_wire_form(value: Any) -> None:
    assert exactly(decode_value(encode_value(value, "x"))) == exactly(value)


def resource_with(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "p"},
        "spec": {
            "graph": {"steps": [{"name": "a", "node": "m"}], "output": {"$step": "a"}},
            "nodes": {
                "m": {
                    "import": "mod:Class",
                    "args": [None if value is None else encode_value(value, "x") for value in values.values()],
                    "kwargs": {key: encode_value(value, "x") for key, value in values.items()},
                    "userConfig": encode_value(values, "x"),
                }
            },
        },
    }


@pytest.mark.parametrize("reader", [yaml.safe_load, kubectl_reads], ids=["PyYAML", "kubectl"])
def test_values_survive_apply_and_get(reader: Any) -> None:
    @SETTINGS
    @given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
    def check(values: dict[str, Any]) -> None:
        written = api.write(api.validate(resource_with(values)))
        for printed in through_a_cluster(written, reader=reader):
            node = api.read(printed).spec.nodes["m"]
            assert exactly([decode_value(arg) for arg in node.args]) == exactly(list(values.values()))
            assert exactly({key: decode_value(arg) for key, arg in node.kwargs.items()}) == exactly(values)
            assert exactly(decode_value(node.user_config)) == exactly(values)
            assert api.write(api.read(printed)) == written

    check()


def test_the_model_of_the_cluster_does_change_plain_json() -> None:
    # A model that changes nothing would prove nothing.
    plain = {"f": 1.0, "n": {"a": None}, "i": 2**64, "e": 1e-7}
    printed, in_yaml = through_a_cluster(json.dumps(plain), reader=api_server_reads)
    assert printed == '{"e":1e-7,"f":1,"i":18446744073709552000,"n":{}}'
    assert kubectl_reads("[y, 0o17, 010, 1_0, 1e3, 0x1F, a]") == [True, 15, 8, 10, 1000.0, 31, "a"]
    assert yaml.safe_load(in_yaml)["e"] == "1e-07"
    assert read_yaml(in_yaml)["e"] == 1e-7


# --- Documents --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(1e-6, 1e20).filter(lambda value: not value.is_integer())
    | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=40,
)


@SETTINGS
@given(st.dictionaries(TEXT, JSON, max_size=6))
def test_every_reader_reads_the_text_that_the_writer_writes(document: dict[str, Any]) -> None:
    from servepipe.api.yaml_writer import write_yaml

    text = write_yaml(document)
    assert exactly(read_yaml(text) or {}) == exactly(document)
    assert exactly(yaml.safe_load(text) or {}) == exactly(document)
    assert exactly(kubectl_reads(text) or {}) == exactly(document)
    assert write_yaml(read_yaml(text) or {}) == text


OPTIONS = st.fixed_dictionaries(
    {"import": st.sampled_from(["mod:Class", "a.b.c:d.e", "größe:Maß"])},
    optional={
        "replicas": st.integers(0, 9),
        "image": st.sampled_from(["ghcr.io/acme/x:1.0", "x@sha256:0f", "1.0"]),
        "resources": st.fixed_dictionaries({}, optional={"cpu": st.sampled_from([1, "1", "500m", "0.5"])}),
        "env": st.lists(st.fixed_dictionaries({"name": NAMES, "value": TEXT}), max_size=3),
        "blocking": st.none() | st.booleans(),
        "runtimeEnv": st.dictionaries(TEXT, TEXT, max_size=3),
        "upgrade": st.just({"strategy": "Canary", "steps": [{"weight": 10}]}),
    },
)


@SETTINGS
@given(st.dictionaries(NAMES, OPTIONS, min_size=1, max_size=6))
def test_writing_what_was_read_gives_the_same_bytes(nodes: dict[str, Any]) -> None:
    document = resource_with({})
    document["spec"]["nodes"] |= nodes
    written = api.write(api.validate(document))
    assert written.isascii() or written.encode()
    assert api.write(api.read(written)) == written
    for printed in through_a_cluster(written, reader=kubectl_reads):
        assert api.write(api.read(printed)) == written

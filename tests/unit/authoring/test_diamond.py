"""REP-001's example, as its files say it."""

import importlib
import sys

import pytest

from servepipe.errors import BadRequestError


@pytest.fixture
def diamonds(root, monkeypatch):
    """Import a module of examples/diamond."""
    monkeypatch.syspath_prepend(root / "examples/diamond")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.startswith(("diamond", "models")):
            del sys.modules[name]


def test_the_diamond_is_8(diamonds):
    diamond = diamonds("diamond")
    assert diamond.ray_dag.execute(1, 2, 3) == 8
    assert diamond.app.execute(1, 2, 3) == 8


def test_one_argument_is_taken_apart(diamonds):
    assert diamonds("diamond_preprocessed").ray_dag.execute([1, 2, 3]) == 8


def test_an_input_that_lacks_parts_names_them(diamonds):
    # REP-001's own preprocessor returns one int for a graph that reads three.
    with pytest.raises(BadRequestError, match=r"input\[0\], input\[1\], input\[2\]"):
        diamonds("diamond").ray_dag.execute(5)


def test_options_stand_where_the_author_put_them(diamonds):
    spec = diamonds("diamond").app.to_dict()["spec"]
    assert spec["nodes"]["m1"]["replicas"] == 3
    assert "replicas" not in spec["nodes"]["m2"]
    assert spec["ingress"] == {"replicas": 2}


async def test_the_preprocessor_makes_the_list(diamonds):
    class Request:
        async def body(self):
            return b"1 2 3"

    preprocessed = diamonds("diamond_preprocessed")
    assert preprocessed.app.preprocessor is preprocessed.request_to_numbers
    assert await preprocessed.request_to_numbers(Request()) == [1, 2, 3]


def test_genuine_ray_objects_compile_to_the_same_bytes(diamonds):
    pytest.importorskip("ray")
    assert diamonds("diamond_ray").app.to_yaml() == diamonds("diamond").app.to_yaml()
    assert diamonds("diamond_ray").app.execute(1, 2, 3) == 8

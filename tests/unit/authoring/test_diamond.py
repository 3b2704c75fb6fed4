"""REP-001's example, as its files say it."""

import importlib
import sys

import pytest

from servepipe import ServeInputNode, remote
from servepipe.errors import BadRequestError
from servepipe.testing import TestClient


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


def test_both_files_answer_over_http(diamonds):
    with TestClient(diamonds("diamond").app) as client:
        assert client.post("/", json=[1, 2, 3]).json() == 8
    with TestClient(diamonds("diamond_preprocessed").app) as client:
        assert client.post("/", content="1 2 3").json() == 8


def test_the_proposals_own_preprocessor_is_told_what_it_leaves_out(diamonds):
    async def request_to_data_int(request):
        return int(await request.body())

    models = diamonds("models")
    with ServeInputNode(preprocessor=request_to_data_int) as dag_input:
        m1, m2 = remote(models.Model).bind(1), remote(models.Model).bind(2)
        outputs = [m1.forward.bind(dag_input[0]), m2.forward.bind(dag_input[1])]
        ray_dag = remote(models.ensemble).bind(*outputs, dag_input[2])

    with TestClient(ray_dag) as client:
        response = client.post("/", content="5")
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert "request_to_data_int returned a single int" in message
    assert "input[0], input[1], input[2]" in message


def test_genuine_ray_objects_compile_to_the_same_bytes(diamonds):
    pytest.importorskip("ray")
    assert diamonds("diamond_ray").app.to_yaml() == diamonds("diamond").app.to_yaml()
    assert diamonds("diamond_ray").app.execute(1, 2, 3) == 8

"""Pipelines with batched methods: written, run in process, compiled, read back."""

from __future__ import annotations

import asyncio

import pytest

from servepipe import ServeInputNode, batch, build, load, map, remote
from servepipe.errors import SignatureError
from servepipe.testing import TestClient

SOURCE = """
    from servepipe import ServeInputNode, batch, build, map, remote, set_batch

    sizes = []

    @remote
    class Embedder:
        def __init__(self, size=16):
            set_batch(self.embed, max_size=size)

        @batch(max_size=16, max_wait_ms=1)
        def embed(self, texts):
            sizes.append(len(texts))
            return [len(text) for text in texts]

        def best(self, texts):
            return max(self.embed(text) for text in texts)

    @remote
    @batch(max_size=3)
    async def total(values):
        return [sum(value) for value in values]

    @remote
    def plain(value):
        return value

    with ServeInputNode() as texts:
        embedder = Embedder.bind()
        lengths = map(embedder.embed, texts)
        answer = plain.bind(total.bind(lengths))

    app = build(answer, name="batched")
"""


def nodes(app):
    return app.to_dict()["spec"]["nodes"]


def test_items_of_a_map_are_computed_together_in_process(write_module):
    module = write_module(SOURCE)
    assert module.answer.execute(["a", "bb", "ccc"]) == 6
    assert sum(module.sizes) == 3
    assert max(module.sizes) > 1


def test_requests_share_batches_in_process(write_module):
    module = write_module(SOURCE)

    async def many():
        return await asyncio.gather(*(module.answer.execute_async(["x" * n]) for n in range(12)))

    assert asyncio.run(many()) == list(range(12))
    assert sum(module.sizes) == 12
    assert max(module.sizes) > 1


def test_over_http_it_is_the_same(write_module):
    module = write_module(SOURCE)
    with TestClient(module.app) as client:
        assert client.post("/", json=[["a", "bb"]]).json() == 3


def test_there_is_room_for_a_batch_that_runs_and_one_that_gathers(write_module):
    module = write_module(SOURCE)
    found = nodes(module.app)
    assert found["embedder"]["maxOngoingRequests"] == 32
    assert found["total"]["maxOngoingRequests"] == 6
    assert "maxOngoingRequests" not in found["plain"]
    assert module.app.definitions["embedder"].max_ongoing_requests == 32
    assert module.app.embedder.options == {}  # the author's own


def test_what_the_author_says_counts(write_module):
    module = write_module(SOURCE)
    module.app.embedder.set_options(max_ongoing_requests=8, autoscaling={"max_replicas": 3})
    module.app.total.set_options(autoscaling={"max_replicas": 3, "target_ongoing_requests": 1})
    found = nodes(module.app)
    assert found["embedder"]["maxOngoingRequests"] == 8
    assert found["embedder"]["autoscaling"] == {"maxReplicas": 3, "targetOngoingRequests": 16}
    assert found["total"]["autoscaling"] == {"maxReplicas": 3, "targetOngoingRequests": 1}


def test_a_batched_function_has_replicas_of_its_own(write_module):
    found = nodes(write_module(SOURCE).app)
    assert found["plain"]["placement"] == "Inline"
    assert "placement" not in found["total"]


def test_a_resource_that_is_read_back_batches_alike(write_module, tmp_path):
    module = write_module(SOURCE)
    (tmp_path / "pipeline.yaml").write_text(module.app.to_yaml())
    pipeline = load(tmp_path / "pipeline.yaml")
    assert pipeline.definitions["embedder"].max_ongoing_requests == 32
    assert pipeline.execute(["a", "bb", "ccc"]) == 6
    assert max(module.sizes) > 1


def test_a_step_is_bound_with_one_item():
    @remote
    class Model:
        @batch(max_size=2)
        def score(self, items):
            return items

    with ServeInputNode() as i, pytest.raises(SignatureError, match=r"It takes \(items\)"):
        Model.bind().score.bind(i[0], i[1])


def test_small_batches_leave_the_default():
    @remote
    class Model:
        @batch(max_size=2)
        def score(self, items):
            return items

    with ServeInputNode() as i:
        model = Model.bind()
        answer = map(model.score, i)
    assert build(answer, name="small").definitions["model"].max_ongoing_requests == 5


def test_sizes_may_come_from_arguments_and_the_user_config(write_module):
    module = write_module(SOURCE.replace("Embedder.bind()", "Embedder.bind(2)"))
    assert module.answer.execute(["a", "bb", "ccc", "d", "e"]) == 8
    assert max(module.sizes) == 2


def test_another_method_of_the_class_may_use_it(write_module):
    module = write_module(
        SOURCE.replace("lengths = map(embedder.embed, texts)", "lengths = [embedder.best.bind(texts)]")
    )
    assert module.answer.execute(["a", "bb", "ccc"]) == 3
    assert module.sizes == [1, 1, 1]  # one after the other

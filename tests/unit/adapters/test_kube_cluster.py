"""The objects around a pipeline, on a simulated API server: made, kept, taken away, and never taken from others."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from fake_kube import FakeKube, Fault, serving, status
from simulated_world import node, resource

from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.adapters.kube_cluster import KubeCluster
from servepipe_operator.adapters.kube_errors import (
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    QuotaExceeded,
    error_from,
)
from servepipe_operator.adapters.ray_token import Kept
from servepipe_operator.adapters.refusals import problem_of
from servepipe_operator.adapters.remembered_history import RememberedHistory
from servepipe_operator.adapters.revision_history import RecordError
from servepipe_operator.engine.cluster import cluster_plan, wanted_cluster
from servepipe_operator.engine.placement import Tenant, place
from servepipe_operator.engine.state import ClusterDefaults, ClusterPlan, Json, Record
from servepipe_operator.objects.cluster_view import ClusterView
from servepipe_operator.objects.names import Owner
from servepipe_operator.ports import UnreachableError

OWNER = Owner("diamond", "shop", "uid-1", "main")
DEFAULTS = ClusterDefaults("2.60.0", "runtime:{ray_version}")
PIPELINE = resource({"m1": node("good")}, image="models:1", ingress={"replicas": 3})
CLUSTERS, V1 = "apis/ray.io/v1/namespaces/shop/rayclusters", "api/v1/namespaces/shop"
POLICIES = "apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
BUDGETS = "apis/policy/v1/namespaces/shop/poddisruptionbudgets"


class Bed:
    """What watches see is what the server has, unless `frozen`."""

    def __init__(self) -> None:
        self.fake = FakeKube()
        self.kept = Kept()
        self.now = 0.0
        self.answers: list[str | Exception] = ["2.60.0"]
        self.asked = 0
        self.missing_kinds: frozenset[str] = frozenset()

    def children(self, kind: str) -> list[Json]:
        return [one for one in self.fake.objects.values() if one.get("kind") == kind and self._labelled(one)]

    def missing(self) -> frozenset[str]:
        return self.missing_kinds

    @staticmethod
    def _labelled(one: Json) -> bool:
        labels = one["metadata"].get("labels") or {}
        return one["kind"] == "Event" or labels.get("servepipe.dev/pipeline") == OWNER.name

    async def ray_version(self, view: ClusterView) -> str:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[KubeCluster]:
        async with serving(self.fake) as kube:
            peers = [{"podSelector": {}}]
            yield KubeCluster(kube, OWNER, self, DEFAULTS, self.kept, self.ray_version, peers, lambda: self.now)

    def get(self, collection: str, name: str) -> Json:
        return self.fake.objects[collection, name]

    def names(self) -> set[str]:
        return {f"{collection.rpartition('/')[2]}/{name}" for collection, name in self.fake.objects}

    def put(self, collection: str, name: str, kind: str, **more: Any) -> Json:
        """An object of somebody."""
        metadata = {"name": name, "namespace": "shop", **more.pop("metadata", {})}
        body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}
        return self.fake._store((collection, name), body)


def kept_of(pipeline: ServePipeline = PIPELINE) -> Json:
    return wanted_cluster(pipeline.spec, None, DEFAULTS)


def plan_of(pipeline: ServePipeline = PIPELINE, live: tuple[Any, ...] = (), *, suspend: bool = False) -> ClusterPlan:
    tenants = [
        Tenant("m1--a", "m1", {"import": "m:M", "image": "models:1"}, None, 1, 1, first=True),
        Tenant("ingress@b", "ingress", {"image": "models:1", "codes": []}, None, 3, 3, first=True),
    ]
    slots = place(tenants, pipeline.spec, live).slots
    return cluster_plan("diamond", "uid-1", kept_of(pipeline), pipeline.spec, slots, suspend)


def head(bed: Bed, *, ready: bool = True, ip: str = "10.0.0.9", uid: str = "head-1") -> None:
    """KubeRay made the head."""
    name = plan_of().name
    live = bed.get(CLUSTERS, name)
    condition = {"type": "HeadPodReady", "status": str(ready), "reason": "Told", "message": "as told"}
    live["status"] = {"conditions": [condition]}
    labels = {"servepipe.dev/pipeline": "diamond", "ray.io/cluster": name, "ray.io/node-type": "head"}
    pod = bed.put(f"{V1}/pods", "head", "Pod", metadata={"labels": labels}, status={"podIP": ip})
    pod["metadata"]["uid"] = uid


async def test_everything_is_made_once() -> None:
    bed = Bed()
    async with bed.cluster() as cluster:
        assert (await cluster.look(kept_of())).absent
        assert await cluster.apply(plan_of()) == ()
        name = plan_of().name
        assert bed.names() == {
            "secrets/diamond-token",
            f"rayclusters/{name}",
            f"networkpolicies/{name}",
            f"networkpolicies/{name}-ingress",
            "services/diamond",
            "poddisruptionbudgets/diamond-ingress",
        }
        assert len(base64.b64decode(bed.get(f"{V1}/secrets", "diamond-token")["data"]["auth_token"])) >= 32
        head(bed)
        writes = len(bed.fake.writes)
        for _ in range(3):
            state = await cluster.look(kept_of())
            assert await cluster.apply(plan_of(live=state.slots)) == ()
        assert (state.problem, state.absent, state.up) == (None, False, True)
        assert len(bed.fake.writes) == writes


async def test_a_cluster_with_a_redis_keeps_the_token_until_it_is_gone() -> None:
    """KubeRay empties the Redis after the pipeline is deleted, by a Job that needs the token."""
    redis = resource(
        {"m1": node("good")}, image="models:1", cluster={"gcsFaultTolerance": {"redisAddress": "redis:6379"}}
    )
    bed = Bed()
    async with bed.cluster() as cluster:
        await cluster.look(kept_of(redis))
        assert await cluster.apply(plan_of(redis)) == ()
        name = plan_of(redis).name
        assert f"rayclusters/{name}" in bed.names()
        assert "secrets/diamond-token" not in bed.names(), "it belongs to the RayCluster, too, which has no uid before"
        await cluster.look(kept_of(redis))
        assert await cluster.apply(plan_of(redis)) == ()
        pipeline, kept_by = bed.get(f"{V1}/secrets", "diamond-token")["metadata"]["ownerReferences"]
        assert (pipeline["kind"], pipeline["controller"]) == ("ServePipeline", True)
        uid = bed.get(CLUSTERS, name)["metadata"]["uid"]
        assert kept_by == {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": name, "uid": uid}
        # Its pipeline is deleted, and one of the same name is made before the Redis is empty.
        bed.get(f"{V1}/secrets", "diamond-token")["metadata"]["ownerReferences"] = [kept_by]
        bed.fake.objects.pop((CLUSTERS, name))
        bed.kept.token = ""
        await cluster.look(kept_of(redis))
        (problem,) = await cluster.apply(plan_of(redis))
        assert (problem.reason, problem.stalled) == ("PreviousDeletionPending", False)
        assert f"rayclusters/{name}" not in bed.names()


async def test_what_somebody_changed_is_changed_back_and_what_is_no_longer_wanted_goes() -> None:
    bed = Bed()
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        await cluster.apply(plan_of())
        bed.get(f"{V1}/services", "diamond")["spec"]["selector"] = {"other": "pods"}
        del bed.fake.objects[POLICIES, plan_of().name]
        one = resource({"m1": node("good")}, image="models:1", ingress={"replicas": 1})
        state = await cluster.look(kept_of())
        assert await cluster.apply(plan_of(one, state.slots)) == ()

        assert bed.get(f"{V1}/services", "diamond")["spec"]["selector"]["servepipe.dev/role"] == "ingress"
        assert (POLICIES, plan_of().name) in bed.fake.objects
        assert (BUDGETS, "diamond-ingress") not in bed.fake.objects

        other = resource({"m1": node("good")}, image="models:1", rayVersion="2.58.0")
        await cluster.look(kept_of(other))
        assert await cluster.apply(plan_of(other)) == ()
        assert [name for collection, name in bed.fake.objects if collection == CLUSTERS] == [plan_of(other).name]


@pytest.mark.parametrize(
    ("collection", "name", "kind", "blocking"),
    [
        (f"{V1}/secrets", "diamond-token", "Secret", True),
        (CLUSTERS, plan_of().name, "RayCluster", True),
        (f"{V1}/services", "diamond", "Service", False),
        (POLICIES, plan_of().name, "NetworkPolicy", True),
        (BUDGETS, "diamond-ingress", "PodDisruptionBudget", False),
    ],
)
async def test_what_belongs_to_others_is_left_alone(collection: str, name: str, kind: str, blocking: bool) -> None:
    bed = Bed()
    foreign = dict(bed.put(collection, name, kind))
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        (problem,) = await cluster.apply(plan_of())

        assert (problem.reason, problem.stalled, problem.blocking) == ("NameTaken", True, blocking)
        assert f"{kind} shop/{name} is there and belongs to somebody else" in problem.message
        assert bed.get(collection, name) == foreign

        metadata = {
            "ownerReferences": [
                {
                    "apiVersion": "servepipe.dev/v1alpha1",
                    "kind": "ServePipeline",
                    "name": "diamond",
                    "uid": "former",
                    "controller": True,
                }
            ],
            "labels": {"servepipe.dev/pipeline": "diamond"},
        }
        bed.put(collection, name, kind, metadata=metadata)
        await cluster.look(kept_of())
        (problem,) = await cluster.apply(plan_of())
        assert (problem.reason, problem.stalled) == ("PreviousDeletionPending", False)

        del bed.fake.objects[collection, name]
        await cluster.look(kept_of())
        assert await cluster.apply(plan_of()) == ()


@pytest.mark.parametrize("plural", ["secrets", "rayclusters"])
async def test_what_is_there_and_goes_at_once_is_looked_at_again(plural: str) -> None:
    bed = Bed()
    there = status(409, "AlreadyExists", "already exists")
    bed.fake.faults.append(lambda method, path: there if method == "POST" and path.endswith(plural) else None)
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        with pytest.raises(Conflict, match="was there and is gone"):
            await cluster.apply(plan_of())


async def test_a_lost_secret_comes_back_with_the_same_token_and_is_looked_for_now_and_then() -> None:
    bed = Bed()
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        await cluster.apply(plan_of())
        head(bed)
        secret = dict(bed.get(f"{V1}/secrets", "diamond-token"))
        del bed.fake.objects[f"{V1}/secrets", "diamond-token"]
        state = await cluster.look(kept_of())
        await cluster.apply(plan_of(live=state.slots))
        assert (f"{V1}/secrets", "diamond-token") not in bed.fake.objects
        bed.now += 301
        await cluster.look(kept_of())
        await cluster.apply(plan_of(live=state.slots))
        assert bed.get(f"{V1}/secrets", "diamond-token")["data"] == secret["data"]

        bed.kept = cluster._kept = cluster._token._kept = Kept()
        await cluster.look(kept_of())
        assert cluster._kept.token == base64.b64decode(secret["data"]["auth_token"]).decode()

        bed.get(f"{V1}/secrets", "diamond-token")["data"] = {}
        bed.kept.token = ""
        problem = (await cluster.look(kept_of())).problem
        assert problem is not None
        assert (problem.reason, problem.stalled) == ("TokenMissing", True)
        assert "Secret shop/diamond-token has no 'auth_token'" in problem.message
        assert await cluster.apply(plan_of(live=state.slots)) == (problem,)


async def test_each_head_is_asked_once_for_its_version() -> None:
    bed = Bed()
    bed.answers = [UnreachableError("not yet"), "2.59.0", "2.60.0"]
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        await cluster.apply(plan_of())
        head(bed)
        assert (await cluster.look(kept_of())).problem is None
        for _ in range(2):
            problem = (await cluster.look(kept_of())).problem
            assert problem is not None
            assert problem.reason == "RayVersionMismatch"
            assert "spec.rayVersion is 2.60.0 but the head runs Ray 2.59.0" in problem.message
        head(bed, uid="head-2")
        assert (await cluster.look(kept_of())).problem is None
        assert bed.asked == 3


@pytest.mark.parametrize(
    ("code", "said", "causes", "told"),
    [
        (
            500,
            "failed to create typed patch object (shop/diamond-peers; networking.k8s.io/v1, Kind=NetworkPolicy): "
            ".spec.ingress[0].from[0].pods: field not declared in schema",
            [],
            "spec.ingress.from[0].pods: field not declared in schema",
        ),
        (
            422,
            "NetworkPolicy is invalid",
            [{"field": "spec.ingress[0].from[1]", "message": "Required value: must specify a peer"}],
            "spec.ingress.from[1]: Required value: must specify a peer",
        ),
        (400, "no idea", [], "spec.ingress.from: no idea"),
    ],
)
async def test_peers_that_are_none_are_refused_before_the_spec_is_accepted(
    code: int, said: str, causes: list[Json], told: str
) -> None:
    bed = Bed()
    bed.fake.faults.append(
        lambda method, path: status(code, "", said, causes=causes) if "networkpolicies" in path else None
    )
    async with bed.cluster() as cluster:
        assert await cluster.refusals(PIPELINE) == ()
        (problem,) = await cluster.refusals(resource({"m1": node("good")}, ingress={"from": [{"pods": {}}]}))
    assert f"{problem.where}: {problem.what}" == told


async def test_refusals_of_the_api_server_say_which_pods() -> None:
    bed = Bed()

    def refuse(method: str, path: str) -> web.Response | None:
        if method == "POST" and path.endswith("/pods"):
            causes = [{"field": "spec.containers[0].image", "message": "must not be empty"}]
            return status(422, "Invalid", "Pod is invalid", causes=causes)
        return None

    bed.fake.faults.append(refuse)
    async with bed.cluster() as cluster:
        problems = await cluster.refusals(PIPELINE)
        assert {str(one) for one in problems} == {
            "spec.cluster.head, spec.ingress, spec.cluster.workers: spec.containers[0].image: must not be empty",
        }
        bed.fake.faults[:] = [
            lambda method, path: status(403, "Forbidden", "exceeded quota: q") if path.endswith("pods") else None
        ]
        assert await cluster.refusals(PIPELINE) == ()
        bed.fake.faults[:] = [
            lambda method, path: status(403, "Forbidden", "violates PodSecurity") if path.endswith("pods") else None
        ]
        assert "violates PodSecurity" in str((await cluster.refusals(PIPELINE))[0])
        bed.fake.faults.clear()
        assert await cluster.refusals(PIPELINE) == ()
        unkeyed = resource({"m1": node("good", template={"spec": {"containers": [{"image": "x"}]}})})
        assert [one.where for one in await cluster.refusals(unkeyed)] == ["spec.nodes.m1.template.spec.containers[0]"]


async def test_what_goes_wrong_with_one_object_is_told_and_does_not_hold_up_others() -> None:
    bed = Bed()
    bed.fake.faults.append(
        lambda method, path: status(403, "Forbidden", "exceeded quota: q") if path.endswith("rayclusters") else None
    )
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        (problem,) = await cluster.apply(plan_of())
        assert (problem.reason, problem.blocking) == ("QuotaExceeded", True)
        assert "services/diamond" in bed.names()
        bed.fake.faults.clear()
        bed.fake.faults.append(lambda method, path: status(409, "Conflict", "changed") if method == "PATCH" else None)
        bed.get(f"{V1}/services", "diamond")["spec"]["selector"] = {}
        with pytest.raises(Conflict):
            await cluster.apply(plan_of())


def refusing_policies(code: int, reason: str, message: str) -> Fault:
    def fault(method: str, path: str) -> web.Response | None:
        return status(code, reason, message) if method == "PATCH" and "/networkpolicies/" in path else None

    return fault


@pytest.mark.parametrize(
    ("code", "said", "message", "reason", "fix"),
    [
        (403, "Forbidden", 'User "o" cannot patch resource "networkpolicies"', "Forbidden", "give the operator"),
        (403, "Forbidden", "exceeded quota: q", "QuotaExceeded", "raise the ResourceQuota"),
        (400, "BadRequest", 'admission webhook "w" denied the request', "Refused", "denied the request"),
    ],
)
async def test_no_pod_starts_without_the_policies_that_close_it(
    code: int, said: str, message: str, reason: str, fix: str
) -> None:
    bed, name = Bed(), plan_of().name
    async with bed.cluster() as cluster:
        bed.fake.faults.append(refusing_policies(code, said, message))
        await cluster.look(kept_of())
        problems = await cluster.apply(plan_of())

        assert [(one.reason, one.stalled, one.blocking) for one in problems] == [(reason, True, True)] * 2
        assert f"NetworkPolicy shop/{name} is not as wanted (no pod is started without it)" in problems[0].message
        assert fix in problems[0].message
        assert f"rayclusters/{name}" not in bed.names()
        assert "services/diamond" in bed.names()

        bed.fake.faults.clear()
        await cluster.look(kept_of())
        assert await cluster.apply(plan_of()) == ()
        assert f"rayclusters/{name}" in bed.names()


async def test_a_suspended_pipeline_rests_on_until_its_pods_can_be_closed() -> None:
    bed, name = Bed(), plan_of().name
    async with bed.cluster() as cluster:
        bed.fake.faults.append(refusing_policies(403, "Forbidden", "exceeded quota: q"))
        await cluster.look(kept_of())
        problems = await cluster.apply(plan_of(suspend=True))
        assert [one.blocking for one in problems] == [False, False]
        assert bed.get(CLUSTERS, name)["spec"]["suspend"], "without pods it may be made"

        state = await cluster.look(kept_of())
        problems = await cluster.apply(plan_of(live=state.slots))
        assert [one.blocking for one in problems] == [True, True]
        assert bed.get(CLUSTERS, name)["spec"]["suspend"]

        bed.fake.faults.clear()
        state = await cluster.look(kept_of())
        assert await cluster.apply(plan_of(live=state.slots)) == ()
        assert not bed.get(CLUSTERS, name)["spec"]["suspend"]


async def test_what_runs_is_not_stopped_when_its_policies_are_refused() -> None:
    bed, name = Bed(), plan_of().name
    async with bed.cluster() as cluster:
        await cluster.look(kept_of())
        await cluster.apply(plan_of())
        head(bed)
        before = bed.get(CLUSTERS, name)["spec"]
        del bed.fake.objects[POLICIES, name]
        bed.fake.faults.append(refusing_policies(403, "Forbidden", "exceeded quota: q"))
        state = await cluster.look(kept_of())
        (problem,) = await cluster.apply(plan_of(live=state.slots))

        assert (problem.reason, problem.stalled, problem.blocking) == ("QuotaExceeded", True, False)
        assert f"NetworkPolicy shop/{name} is not as wanted (what runs goes on" in problem.message
        assert bed.get(CLUSTERS, name)["spec"] == before

        state = await cluster.look(kept_of())
        await cluster.apply(plan_of(live=state.slots, suspend=True))
        assert bed.get(CLUSTERS, name)["spec"]["suspend"], "it can still be stopped"


async def test_a_cluster_that_cannot_be_made_says_why() -> None:
    bed = Bed()
    async with bed.cluster() as cluster:
        assert (await cluster.look(None)).absent
        bed.missing_kinds = frozenset({"rayclusters.ray.io"})
        state = await cluster.look(kept_of())
        assert state.problem is not None
        assert state.problem.reason == "KubeRayMissing"
        bed.fake.missing_kinds = {"rayclusters"}
        (problem,) = await cluster.apply(plan_of())
        assert problem.reason == "KubeRayMissing"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RecordError("too large"), "HistoryTooLarge"),
        (QuotaExceeded("q", 403), "QuotaExceeded"),
        (Forbidden("f", 403), "Forbidden"),
        (Invalid("i", 422), "Refused"),
        (Invalid("i", 413), "TooLarge"),
        (error_from("create x", 500, "etcdserver: request is too large", {}), "TooLarge"),
        (error_from("apply x", 500, "failed to create typed patch object (a; v1): .b: not declared", {}), "Refused"),
        (NotFound("n", 404), "Refused"),
        (KubeError("k"), "Refused"),
    ],
)
def test_refusals_have_reasons(error: KubeError | RecordError, reason: str) -> None:
    assert problem_of(error).reason == reason
    assert problem_of(error).stalled


class Slow:
    """A `History` whose calls are counted and can fail."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.lists = 0
        self.fails = False

    async def list(self) -> tuple[Record, ...]:
        self.lists += 1
        return tuple(self.records.values())

    async def write(self, record: Record) -> None:
        self.records[record.name] = record
        if self.fails:
            raise UnreachableError("lost")

    async def delete(self, record: Record) -> None:
        self.records.pop(record.name, None)
        if self.fails:
            raise UnreachableError("lost")


async def test_history_is_read_once_and_again_after_a_failure() -> None:
    slow, now = Slow(), [0.0]
    history = RememberedHistory(slow, 300.0, lambda: now[0])
    one, two = Record("node", "a", {}), Record("node", "b", {})
    await history.write(one)
    assert await history.list() == (one,)
    await history.write(two)
    await history.delete(one)
    assert await history.list() == (two,)
    assert slow.lists == 1
    slow.fails = True
    for write in (history.write, history.delete):
        with pytest.raises(UnreachableError):
            await write(one)
        await history.list()
    assert slow.lists == 3
    now[0] += 300
    await history.list()
    assert slow.lists == 4

"""The reconcile of one pipeline: from what the watches saw to one look of the engine through the adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from servepipe.api import InvalidResourceError, validate
from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import API_VERSION, KIND, ServePipeline, Service
from servepipe_operator.adapters import owner as references
from servepipe_operator.adapters.dashboard import Dashboard, Dashboards, Place
from servepipe_operator.adapters.following import FollowingRouting, RememberingServe, deployed_route
from servepipe_operator.adapters.kube_cluster import KubeCluster
from servepipe_operator.adapters.kube_errors import Conflict, KubeError, NotFound
from servepipe_operator.adapters.kube_events import KubeEvents, ToldEvents
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.adapters.kube_status import KubeStatus
from servepipe_operator.adapters.ray_token import Kept
from servepipe_operator.adapters.refusals import problem_of
from servepipe_operator.adapters.remembered_history import RememberedHistory
from servepipe_operator.adapters.revision_history import RecordError, RevisionHistory
from servepipe_operator.controller.context import Context, Key
from servepipe_operator.controller.late_ports import LateRouting, LateServe, head_place, http_port, ray_version
from servepipe_operator.controller.store import whole
from servepipe_operator.engine.conditions import Condition
from servepipe_operator.engine.history import HistoryError, read
from servepipe_operator.engine.plan import refused_status
from servepipe_operator.engine.state import Application, ClusterDefaults, Environment, Event, Json
from servepipe_operator.engine.status import with_problem
from servepipe_operator.objects.names import Owner, ownership
from servepipe_operator.objects.network import operator_peer
from servepipe_operator.objects.pods import SERVE_PORT
from servepipe_operator.ports import History, Ports, Routing, UnreachableError
from servepipe_operator.reconcile import reconcile

__all__ = ["PipelineReconciler", "newest"]

log = logging.getLogger(__name__)

#: After a write that met another one: what it met is in the watches by then.
CONFLICT_S = 0.2


@dataclass(slots=True)
class _Pipeline:
    """What is kept of one pipeline between looks; all of it can be lost.

    Args:
        route: Where Serve's ingress answered when it was seen last.
        parsed: The generation that was read last, and what it says.
        written: What the server answered to the last status: until the watch has caught up, that is the newer one.
    """

    uid: str
    history: History
    kept: Kept = field(default_factory=Kept)
    route: str = ""
    parsed: tuple[int | None, ServePipeline] | None = None
    written: Json | None = None


class PipelineReconciler:
    """Looks at one pipeline and does what is due; see `context.Work`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings
        self._pipelines: dict[Key, _Pipeline] = {}
        self._told = ToldEvents()
        self._dashboards = Dashboards(self._dashboard)
        self._defaults = ClusterDefaults(context.settings.ray_version, context.settings.runtime_image)

    async def __call__(self, key: Key) -> float | None:
        """See `context.Work`."""
        live = self._context.store.pipeline(key)
        if live is None or live["metadata"].get("deletionTimestamp"):
            # Everything of it is owned by it: the garbage collector takes it away.
            await self._forget(key)
            return None
        uid = str(live["metadata"]["uid"])
        known = self._pipelines.get(key)
        if known is None or known.uid != uid:
            await self._forget(key)
            known = self._pipelines[key] = _Pipeline(uid, self._history(key, uid))
        if known.written is not None:
            live = newest(live, known.written)
        return await self._look(key, known, live)

    async def _look(self, key: Key, known: _Pipeline, live: Json) -> float | None:
        reference = references.Owner(API_VERSION, KIND, key.namespace, key.name, known.uid)
        status = KubeStatus(self._context.kube, PIPELINES, reference, live)
        events = KubeEvents(self._context.kube, reference, self._told, self._settings.instance, _lost)
        try:
            await self._take(status)
            return await self._reconcile(key, known, live, status, events)
        except Conflict as error:
            log.info("looking again at once: %s", error)
            return CONFLICT_S
        except UnreachableError:
            raise
        except NotFound as error:
            if error.kind_missing:
                raise
            return CONFLICT_S  # the pipeline went meanwhile, and the watch tells
        except (KubeError, RecordError, HistoryError) as error:
            problem = problem_of(error)
            log.warning("%s: %s", problem.reason, problem.message)
            before = await status.read()
            after: Json = {**before, "observedGeneration": live["metadata"].get("generation")}
            # The look ended in the middle: nobody knows whether callers are answered.
            for condition in (
                Condition("Available", "Unknown", problem.reason, problem.message),
                Condition("Ready", "False", problem.reason, problem.message),
                Condition("Stalled", "True", problem.reason, problem.message),
            ):
                after = with_problem(after, before, condition, time.time())
            if after != before:
                await status.write(after)
                await events.emit(Event("Warning", problem.reason, problem.message))
            return self._settings.steady_s
        finally:
            known.written = None if status.latest is None else whole(status.latest)

    async def _take(self, status: KubeStatus) -> None:
        """Say whose it is before anything is made of it: of two operators that see a new pipeline one comes second."""
        before = await status.read()
        if before.get("installation") != self._settings.installation:
            await status.write({**before, "installation": self._settings.installation})

    async def _reconcile(
        self, key: Key, known: _Pipeline, live: Json, status: KubeStatus, events: KubeEvents
    ) -> float | None:
        pipeline, refused = await _read(live, known)
        if pipeline is None:
            before = await status.read()
            after = refused_status(refused, before, time.time(), live["metadata"].get("generation"))
            if after != before:
                await status.write(after)
            return self._settings.steady_s
        ingress = pipeline.spec.ingress
        service = (ingress.service if ingress else None) or Service()
        route = ingress.route if ingress else "/"
        owner = Owner(key.name, key.namespace, known.uid, self._settings.installation)

        async def dashboard() -> Dashboard:
            return await self._dashboards.of(known.uid, known.kept.token)

        seen = _Seen(self._context, key)
        cluster = KubeCluster(
            self._context.kube,
            owner,
            seen,
            self._defaults,
            known.kept,
            lambda view: ray_version(dashboard, key.namespace, view),
            self._peers(),
        )

        applications: dict[str, Application] = {}

        def routing() -> Routing:
            ours = [one for one in seen.children("Service") if ownership(one, owner) == "ours"]
            port = http_port(ours, service.port)
            place = Place(key.namespace, key.name, port, cluster.view.ingress_ip, SERVE_PORT)
            return LateRouting(dashboard, place, deployed_route(applications, known.route or route), bool(ours))

        ports = Ports(
            serve=RememberingServe(LateServe(dashboard, lambda: head_place(key.namespace, cluster.view)), applications),
            routing=FollowingRouting(routing),
            history=known.history,
            status=status,
            events=events,
            cluster=cluster,
        )
        environment = Environment(
            http={"host": "0.0.0.0", "port": SERVE_PORT},
            grpc={"port": ingress.grpc.port} if ingress and ingress.grpc else {},
            installation=self._settings.installation,
            url=f"http://{key.name}.{key.namespace}.svc:{service.port}{route}",
            cluster=self._defaults,
            steady_s=self._settings.steady_s,
            changing_s=self._settings.changing_s,
        )
        try:
            plan = await reconcile(pipeline, ports, environment, time.time(), refused)
        finally:
            known.route = deployed_route(applications, known.route)
        if plan.serve_config is not None:
            log.info("sent Serve %d applications", len(plan.serve_config["applications"]))
        return plan.look_again_after_s

    def _peers(self) -> Sequence[Json]:
        settings = self._settings
        if settings.dashboard == "proxy":
            return [{"ipBlock": {"cidr": cidr}} for cidr in settings.api_server_from]
        return [operator_peer(settings.namespace, dict(settings.pod_labels))]

    def _history(self, key: Key, uid: str) -> History:
        reference = references.Owner(API_VERSION, KIND, key.namespace, key.name, uid)
        revisions = RevisionHistory(self._context.kube, reference, _corrupt)
        return RememberedHistory(revisions, self._settings.resync_s)

    def _dashboard(self, token: str) -> Dashboard:
        return Dashboard(
            self._settings.dashboard,
            self._context.access,
            token=token,
            cluster_domain=self._settings.cluster_domain,
            allowed=self._context.allowed,
        )

    async def _forget(self, key: Key) -> None:
        known = self._pipelines.pop(key, None)
        if known is not None:
            await self._dashboards.forget(known.uid)


class _Seen:
    """`kube_cluster.Seen` of one pipeline during one look: what was asked for once stays as it was."""

    def __init__(self, context: Context, key: Key) -> None:
        self._store, self._key = context.store, key
        self._children: dict[str, Sequence[Json]] = {}

    def children(self, kind: str) -> Sequence[Json]:
        if kind not in self._children:
            self._children[kind] = self._store.children(kind, self._key)
        return self._children[kind]

    def missing(self) -> frozenset[str]:
        return self._store.missing()


def newest(seen: Json, written: Json) -> Json:
    """What a watch has seen or what a write was answered, whichever is later.

    Who acts on an older spec after a newer one sends Serve back and forth for as long as the watch lags behind.
    Versions of one object are numbers that grow; where they are not, the watch counts.
    """
    first, second = (one["metadata"] for one in (seen, written))
    try:
        later = int(second["resourceVersion"]) > int(first["resourceVersion"])
    except ValueError:
        later = False
    return written if later and first["uid"] == second["uid"] else seen


# --- Reading ----------------------------------------------------------------------------------------------------------


async def _read(live: Json, known: _Pipeline) -> tuple[ServePipeline | None, tuple[Problem, ...]]:
    """The pipeline; where it cannot be read, what was accepted last in its place, and why."""
    generation = live["metadata"].get("generation")
    if known.parsed is not None and known.parsed[0] == generation:
        return known.parsed[1], ()
    try:
        # Status is kept apart: another version may have written it.
        pipeline = validate({key: value for key, value in live.items() if key != "status"})
    except InvalidResourceError as error:
        spec = await _accepted_spec(known.history)
        if spec is None:
            return None, error.problems
        try:
            return validate({**live, "spec": spec, "status": None}), error.problems
        except InvalidResourceError:
            return None, error.problems
    known.parsed = (generation, pipeline)
    return pipeline, ()


async def _accepted_spec(history: History) -> Json | None:
    memory = read(await history.list())
    return memory.specs.get(memory.checkpoint.spec) if memory.checkpoint else None


# --- Told in the log --------------------------------------------------------------------------------------------------


def _lost(event: Event, error: KubeError) -> None:
    log.warning("event %s was not written: %s", event.reason, error, extra={"node": event.node})


def _corrupt(name: str, reason: str) -> None:
    log.error("ControllerRevision %s is left out of history: %s", name, reason)

"""Serve's own replica object without Ray, for tests of what runs inside it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.http_util import ASGIAppReplicaWrapper
from ray.serve._private.replica import Replica, UserCallableWrapper
from ray.serve._private.utils import Semaphore


class Counts:
    """Serve's metrics manager, as far as requests are counted; with its own signatures."""

    def __init__(self):
        self.ongoing = 0
        self.most = 0
        self.recorded = []
        self.requests = []

    def inc_num_ongoing_requests(self, request_metadata):
        self.ongoing += 1
        self.most = max(self.most, self.ongoing)

    def dec_num_ongoing_requests(self, request_metadata):
        self.ongoing -= 1

    def record_request_metrics(self, **what):
        self.recorded.append(what)

    def record_ingress_request_metrics(self, **what):
        self.requests.append(what)


class Node:
    """The deployment's class, whose only method is ``call``."""

    def __init__(self, call):
        self.call = call


def user_code(call, users=None):
    """Serve's own object around the deployment's class, on the replica's loop or on ``users``."""
    found = object.__new__(UserCallableWrapper)
    found._callable = Node(call)
    found._is_function = False
    found._cached_user_method_info = {}
    found._run_user_code_in_separate_thread = users is not None
    found._user_code_event_loop = users or asyncio.get_running_loop()
    found._local_testing_mode = False
    found._run_sync_methods_in_threadpool = True
    found._warned_about_sync_method_change = False
    found._is_enabled_for_debug = False
    return found


def serve_replica(call, *, limit=5, queued=-1, users=None):
    """Serve's own replica object, with all that needs no Ray: its request path, limit and errors are the real ones."""
    replica = object.__new__(Replica)
    replica._event_loop = asyncio.get_running_loop()
    replica._quiescing = False
    replica._ingress = True
    replica._deployment_config = SimpleNamespace(max_ongoing_requests=limit, max_queued_requests=queued)
    replica._semaphore = Semaphore(lambda: replica.max_ongoing_requests)
    replica._metrics_manager = Counts()
    replica._deployment_id = DeploymentID("node", "m1--a")
    replica._replica_id = ReplicaID("x1y2", replica._deployment_id)
    replica._access_log_context = {}
    replica._user_callable_wrapper = user_code(call, users)
    return replica


class App(ASGIAppReplicaWrapper):
    """The deployment's class of an app, as Serve makes it."""

    def __init__(self, app):
        self._asgi_app = app

    def __del__(self):
        """Serve's has to be awaited, and ends the app's lifespan, of which there is none here."""


def serve_app(app, *, route="/", limit=5, queued=-1, timeout_s=None):
    """Serve's own replica object around an ASGI app, with all that needs no Ray."""
    replica = serve_replica(None, limit=limit, queued=queued)
    replica._deployment_id = DeploymentID("ingress", "ingress")
    replica._replica_id = ReplicaID("x1y2", replica._deployment_id)
    replica._user_callable_wrapper._callable = App(app)
    replica._user_callable_asgi_app = app
    replica._user_callable_initialized = True
    replica._route_prefix = route
    replica._num_queued_requests = 0
    replica._http_options = SimpleNamespace(request_timeout_s=timeout_s)
    replica._http_port = None
    return replica

"""The operator as one process: leads by a Lease, watches, and has pipelines looked at by workers.

What has to go on for ever are root tasks: keeping the Lease, the watches, the workers. When one of them ends, so does
the process, and its supervisor starts it anew as a candidate: nothing is repaired in a process that nobody knows the
state of. The exit code says why: 0 asked to, 1 something broke, 2 wrong settings, 3 the Lease was lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NoReturn

import aiohttp
from kubernetes.aio.config import ConfigException

from servepipe import __version__
from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_access import Access, login
from servepipe_operator.adapters.kube_errors import KubeError
from servepipe_operator.adapters.limits import RateLimit
from servepipe_operator.controller import logs
from servepipe_operator.controller.context import Context, Key, Store, Work
from servepipe_operator.controller.discovery import Discovery
from servepipe_operator.controller.health import Health, HealthServer
from servepipe_operator.controller.kinds import CHILDREN, pipelines
from servepipe_operator.controller.lease import Elector, LeaseLostError
from servepipe_operator.controller.metrics import Metrics
from servepipe_operator.controller.queue import Backoff, WorkQueue, has, run_workers
from servepipe_operator.controller.settings import Settings, SettingsError, from_environment
from servepipe_operator.controller.store import Cache, WatchStore
from servepipe_operator.controller.watching import Watches
from servepipe_operator.ports import UnreachableError

__all__ = ["Context", "Key", "StartError", "Store", "Work", "lease_name", "main", "run"]

log = logging.getLogger(__name__)

STOPPED, BROKEN, WRONG_SETTINGS, LEASE_LOST = range(4)
#: For tasks to end after they were cancelled; what takes longer is left behind, the process ends all the same.
CANCEL_S = 2.0


class StartError(Exception):
    """The process cannot begin as it was told to; says what is to be done."""


def lease_name(installation: str) -> str:
    """The Lease, in the operator's own namespace, whose holder runs the pipelines of ``installation``."""
    return f"{installation}-operator"


def main(reconciler: Callable[[Context], Work], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the operator in this process and end it with an exit code; see the module.

    Args:
        reconciler: Makes what looks at pipelines, once this process leads.
        arguments: Default: those of the process.
    """
    try:
        settings = from_environment(os.environ, sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        sys.stderr.write(f"servepipe-operator: wrong settings\n{error}\n")
        sys.exit(WRONG_SETTINGS)
    logs.configure(settings.log_level)
    allow_open_files()
    asyncio.run(_to_the_end(settings, reconciler))
    raise AssertionError("unreachable")


def allow_open_files() -> None:
    """As many as this process may have: each pipeline keeps two connections, and the usual 1,024 are soon gone."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _to_the_end(settings: Settings, reconciler: Callable[[Context], Work]) -> NoReturn:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        code = await run(settings, reconciler, stop)
    except StartError as error:
        log.critical("the operator ends: %s", error)
        code = BROKEN
    except Exception as error:
        log.critical("the operator ends: %s", error, exc_info=error)
        code = BROKEN
    logging.shutdown()
    # At once: a task that does not end, or a thread that waits for DNS, must not hold up the next leader.
    os._exit(code)


async def run(
    settings: Settings, reconciler: Callable[[Context], Work], stop: asyncio.Event, access: Access | None = None
) -> int:
    """Run until ``stop`` is set or something breaks; the exit code.

    Raises:
        StartError: The HTTP port is taken, or there is no way to log in to Kubernetes.
    """
    health, metrics = Health(), Metrics(__version__, settings.installation)
    store = WatchStore(Cache(pipelines(settings.installation)), [Cache(kind) for kind in CHILDREN.values()])
    server = HealthServer(health, metrics, lambda: metrics.pipelines(store.pipelines.conditions()))
    try:
        port = await server.start(settings.http_host, settings.http_port)
    except OSError as error:
        where = f"{settings.http_host}:{settings.http_port}"
        raise StartError(f"no HTTP server at {where}: {error}; SERVEPIPE_HTTP_PORT takes another port") from error
    log.info("servepipe %s, installation %s; HTTP port %d", __version__, settings.installation, port)
    try:
        access = access or await _login()
        # Watches are connections that stay; the limits of `Kube` are enough for the rest.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await _lead(settings, reconciler, stop, access, session, health, metrics, store)
    finally:
        await server.stop()


async def _login() -> Access:
    try:
        return await login()
    except ConfigException as error:
        raise StartError(
            f"no way to log in to Kubernetes: {str(error).rstrip('.')}. "
            "In a pod its ServiceAccount's token has to be mounted; elsewhere KUBECONFIG, or else ~/.kube/config, "
            "has to be a file with a current context."
        ) from error


async def _lead(
    settings: Settings,
    reconciler: Callable[[Context], Work],
    stop: asyncio.Event,
    access: Access,
    session: aiohttp.ClientSession,
    health: Health,
    metrics: Metrics,
    store: WatchStore,
) -> int:
    lease_kube = Kube(session, access, timeout_s=settings.api_timeout_s, on_request=metrics.requested)
    identity = f"{settings.instance}_{uuid.uuid4()}"
    elector = Elector(lease_kube, settings.namespace, lease_name(settings.installation), identity, settings.lease)
    metrics.watch_lease(elector.holds)
    if not await _acquire(elector, health, stop):
        return STOPPED
    kube = Kube(
        session,
        access,
        rate=RateLimit(settings.api_per_s, int(2 * settings.api_per_s) or 1),
        timeout_s=settings.api_timeout_s,
        allowed=elector.require,
        on_request=metrics.requested,
    )
    queue: WorkQueue[Key] = WorkQueue()
    metrics.watch_queue(lambda: queue.depth, lambda: queue.age_s)
    context = Context(settings, kube, access, session, elector.require, metrics, store, queue.add)
    watches = Watches(
        kube,
        store,
        Discovery(kube),
        health,
        queue.add_after,
        namespaces=settings.watch_namespaces,
        resync_s=settings.resync_s,
    )
    work = run_workers(
        queue,
        _measured(reconciler(context), metrics, settings.steady_s),
        settings.workers,
        Backoff(),
        _failed,
        (LeaseLostError,),
        limit_s=settings.look_s,
    )
    workers = asyncio.create_task(work, name="workers")
    roots = [
        workers,
        asyncio.create_task(elector.keep(), name="lease"),
        asyncio.create_task(watches.run(), name="watches"),
    ]
    code = await _until_one_ends(roots, stop)
    if code == STOPPED:
        log.info("stopping: looks under way have %g s to end", settings.stop_s)
        queue.close()
        await asyncio.wait(roots, timeout=settings.stop_s, return_when=asyncio.FIRST_COMPLETED)
        if not workers.done():
            log.warning("looks that did not end in time are cancelled")
    await _cancel(roots)
    await elector.release()
    log.info("the operator ends with exit code %d", code)
    return code


async def _acquire(elector: Elector, health: Health, stop: asyncio.Event) -> bool:
    """Wait for the Lease; whether it came before ``stop``."""

    def wait(why: str) -> None:
        health.found("lease")
        if health.notes.get("leader") != why:
            log.info("candidate: %s", why)
        health.notes["leader"] = why

    def trouble(error: KubeError) -> None:
        if health.waiting.get("lease") != str(error):
            log.warning("no Lease yet: %s", error)
        health.wait_for("lease", str(error))

    acquiring = asyncio.create_task(elector.acquire(wait, trouble), name="acquire")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([acquiring, stopping], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        await _cancel([acquiring, stopping])
        await elector.release()
        return False
    await _cancel([stopping])
    await acquiring
    health.found("lease")
    health.notes["leader"] = "this process"
    log.info("this process leads")
    return True


async def _until_one_ends(roots: Sequence[asyncio.Task[None]], stop: asyncio.Event) -> int:
    """Wait for ``stop`` or the end of a root task; the exit code, the reason in the log."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    done, _ = await asyncio.wait([*roots, stopping], return_when=asyncio.FIRST_COMPLETED)
    await _cancel([stopping])
    ended = [task for task in roots if task in done]
    for task in ended:
        error = None if task.cancelled() else task.exception()
        if error is not None and has(error, (LeaseLostError,)):
            log.error("the Lease is lost, so another process may write: %s", _first(error))
            return LEASE_LOST
        log.error("the task %r ended, which must not happen", task.get_name(), exc_info=error)
    return BROKEN if ended else STOPPED


async def _cancel(tasks: Sequence[asyncio.Task[object]] | Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    _, hanging = await asyncio.wait(tasks, timeout=CANCEL_S)
    for task in hanging:
        log.warning("the task %r does not end", task.get_name())


def _measured(work: Work, metrics: Metrics, steady_s: float) -> Work:
    """``work`` with its result and duration in the metrics, and its pipeline in the logs."""

    async def look(key: Key) -> float | None:
        began, result = time.monotonic(), "error"
        try:
            with logs.about(pipeline=str(key)):
                again_s = await work(key)
            result = "gone" if again_s is None else "changing" if again_s < steady_s else "ok"
            return again_s
        except UnreachableError:
            result = "unreachable"
            raise
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        finally:
            metrics.reconciled(result, time.monotonic() - began)

    return look


def _failed(key: Key, error: Exception, again_s: float) -> None:
    """Answers of the API server are said in a line; anything else is a mistake of ours and told in full."""
    expected = isinstance(error, KubeError | UnreachableError | TimeoutError)
    log.log(
        logging.WARNING if expected else logging.ERROR,
        "looking again in %.1f s: %s",
        again_s,
        str(error) or type(error).__name__,
        exc_info=None if expected else error,
        extra={"pipeline": str(key)},
    )


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

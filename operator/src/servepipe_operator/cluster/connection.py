"""One command's way to a cluster: who is asked, about which namespace, and errors in the words of people."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from servepipe.api.v1alpha1 import KIND
from servepipe.errors import MissingExtraError, ServePipeError
from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_errors import Conflict, Forbidden, Invalid, KubeError, NotFound, Unavailable
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.engine.state import Json

__all__ = [
    "SILENCE_S",
    "SILENT",
    "ClusterError",
    "Connection",
    "NotNowError",
    "connect",
    "connect_as",
    "in_words",
    "message_of",
    "run",
    "unanswered",
]

SILENT = "The cluster does not answer"
#: After which, in seconds, a wait that ends blames the cluster rather than the pipeline.
SILENCE_S = 2.0
T = TypeVar("T")


class ClusterError(ServePipeError):
    """A cluster cannot be reached, or refuses."""


class NotNowError(ClusterError):
    """What was asked for does not answer at the moment; a little later it may."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster and a namespace in it.

    Args:
        context: Of the kubeconfig; "" inside a cluster.
        namespace: That of the command line, else of the context.
        named: Whether the command line named the namespace.
    """

    kube: Kube
    context: str
    namespace: str
    named: bool = False

    def place(self, namespace: str = "") -> str:
        """For people: ``namespace shop, context prod``."""
        where = f"namespace {namespace or self.namespace}"
        return f"{where}, context {self.context}" if self.context else where

    async def find(self, name: str, namespace: str = "") -> Json | None:
        """The pipeline, None where there is none."""
        with in_words(self):
            try:
                return await self.kube.get(PIPELINES, namespace or self.namespace, name)
            except NotFound as error:
                if error.kind_missing:
                    raise
                return None

    async def get(self, name: str | None) -> Json:
        """The pipeline of that name, or the only one of the namespace. Raises `ClusterError`."""
        if name is not None:
            live = await self.find(name)
            if live is not None:
                return live
        pipelines = await self.list()
        names = sorted(one["metadata"]["name"] for one in pipelines)
        listed = f"There: {', '.join(names)}." if names else "Create one: `servepipe apply --kube -f FILE`."
        if name is not None:
            raise ClusterError(f"There is no pipeline {name!r} in {self.place()}", fix=listed)
        if not names:
            raise ClusterError(f"There is no pipeline in {self.place()}", fix=listed)
        if len(names) > 1:
            raise ClusterError(
                f"There are {len(names)} pipelines in {self.place()}: {', '.join(names)}",
                fix=f"Name one, for instance -p {names[0]}.",
            )
        return pipelines[0]

    async def list(self) -> tuple[Json, ...]:
        """All pipelines of the namespace."""
        with in_words(self):
            return await self.kube.list(PIPELINES, self.namespace)


@asynccontextmanager
async def connect(
    manager: str, *, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None
) -> AsyncIterator[Connection]:
    """Log in as kubectl does.

    Args:
        manager: The field manager under which this command writes.

    Raises:
        ClusterError: There is no kubeconfig, or no such context.
        MissingExtraError: The package that speaks to clusters is not installed.
    """
    try:
        import aiohttp
        from kubernetes.aio.config import ConfigException

        from servepipe_operator.adapters.kube_access import person_login
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Speaking to a cluster needs {error.name!r}", fix='pip install "servepipe[operator]"'
        ) from error

    try:
        login = await person_login(kubeconfig or "", context or "")
    except (ConfigException, OSError) as error:
        raise ClusterError(
            f"No way to a cluster: {error}", fix="Name a kubeconfig with --kubeconfig or KUBECONFIG, or a --context."
        ) from None
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        kube = Kube(session, login.access, manager=manager)
        yield Connection(kube, login.context, namespace or login.namespace, bool(namespace))


def connect_as(manager: str, arguments: argparse.Namespace) -> Any:
    """`connect` with what the command line says."""
    return connect(manager, kubeconfig=arguments.kubeconfig, context=arguments.context, namespace=arguments.namespace)


@contextmanager
def in_words(connection: Connection) -> Iterator[None]:
    """Turn what the API server answers into errors for people."""
    try:
        yield
    except NotFound as error:
        if not error.kind_missing:
            raise ClusterError(_said(error), where=connection.place()) from error
        raise ClusterError(
            f"The cluster of {connection.place()} does not know {KIND}",
            fix="Install servepipe's CRD and operator into it first.",
        ) from error
    except Forbidden as error:
        raise ClusterError(_said(error), where=connection.place(), fix="Ask for the rights that it names.") from error
    except (Invalid, Conflict) as error:
        raise ClusterError(_said(error), where=connection.place()) from error
    except KubeError as error:
        raise NotNowError(f"{SILENT}: {error}", where=connection.place()) from error


def unanswered(error: ServePipeError) -> bool:
    """Whether the API server was asked in vain, and may answer a little later."""
    return isinstance(error.__cause__, Unavailable)


def message_of(error: KubeError) -> str:
    """The server's own words, without what was asked."""
    return str(error).partition(": HTTP ")[2].partition(": ")[2] or str(error)


def run(work: Coroutine[Any, Any, T]) -> T | int:
    """Run a command; Ctrl-C ends it with 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        return 130


def _said(error: KubeError) -> str:
    """The server's own words, one problem a line."""
    if not error.causes:
        return message_of(error)
    return "The cluster refuses it\n" + "\n".join(f"    {cause}" for cause in error.causes)

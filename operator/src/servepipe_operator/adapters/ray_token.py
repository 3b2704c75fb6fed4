"""The Secret with the token that Ray's processes ask of each other, and the operator sends to Ray's dashboard."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_errors import AlreadyExists, Conflict, NotFound
from servepipe_operator.adapters.kube_resource import SECRETS
from servepipe_operator.engine.state import ClusterProblem, Json
from servepipe_operator.objects.names import Owner, claim, ownership, token_secret_name
from servepipe_operator.objects.services import TOKEN_KEY, token_of, token_secret

__all__ = ["Kept", "NoTokenError", "RayToken"]

#: Seconds for which a Secret that was seen is taken to be there.
SECRET_S = 300.0


@dataclass(slots=True)
class Kept:
    """What is kept of one pipeline between looks.

    Args:
        token: Ray's, as it was read or made last, or "".
        token_at: When the Secret was seen last, in monotonic seconds.
        versions: What the pod of a head, by its uid, answered as its version of Ray.
    """

    token: str = ""
    token_at: float = -math.inf
    versions: dict[str, str] = field(default_factory=dict)


class NoTokenError(Exception):
    """A Secret of ours without Ray's token."""

    @property
    def problem(self) -> ClusterProblem:
        return ClusterProblem("TokenMissing", str(self), stalled=True)


class RayToken:
    """Args:
    owner: The pipeline.
    kept: Where the token is remembered.
    clock: In monotonic seconds.
    """

    def __init__(self, kube: Kube, owner: Owner, kept: Kept, clock: Callable[[], float]) -> None:
        self._kube, self._owner, self._kept, self._clock = kube, owner, kept, clock
        self._name = token_secret_name(owner.name)

    async def read(self) -> bool:
        """Whether there is a Secret of ours; its token is kept. Raises `NoTokenError`."""
        self._kept.token_at = self._clock()
        found = await self._found()
        if found is None or ownership(found, self._owner) != "ours":
            return False
        self._kept.token = _token_in(found)
        return True

    async def ensure(self, cluster: Json | None, *, outlives: bool, well: bool) -> ClusterProblem | None:
        """Makes the Secret where there is none. Secrets are not watched, so it is looked for now and then.

        Args:
            cluster: The live RayCluster, if there is one.
            outlives: The RayCluster goes on after the pipeline was deleted, until a Job of KubeRay's has emptied its
                Redis, and that Job needs the token. So the Secret belongs to it as well, and is made after it; its pods
                wait for a moment.
            well: Nothing is known to be wrong with its pods; without a Secret none would start.

        Raises:
            NoTokenError: There is one of ours without a token.
        """
        fresh = self._clock() - self._kept.token_at < SECRET_S and well
        if (self._kept.token and cluster is not None and fresh) or await self.read():
            return None
        if outlives and cluster is None:
            found = await self._found()
            return claim("Secret", found, self._owner) if found else None
        # One that is lost comes back with the token that Ray's processes were started with, as long as it is known.
        token = self._kept.token or secrets.token_urlsafe(32)
        body = token_secret(self._owner, token, cluster if outlives else None)
        try:
            await self._kube.create(SECRETS, body)
        except AlreadyExists:
            body = await self._found() or {}
            if not body:
                raise Conflict(f"Secret {self._owner.namespace}/{self._name} was there and is gone") from None
            if problem := claim("Secret", body, self._owner):
                return problem
        self._kept.token = _token_in(body)
        return None

    async def _found(self) -> Json | None:
        try:
            return await self._kube.get(SECRETS, self._owner.namespace, self._name)
        except NotFound:
            return None


def _token_in(secret: Json) -> str:
    token = token_of(secret)
    if token is None:
        raise NoTokenError(
            f"Secret {secret['metadata'].get('namespace')}/{secret['metadata']['name']} has no {TOKEN_KEY!r}; "
            "delete it together with the RayCluster, and both are made again"
        )
    return token

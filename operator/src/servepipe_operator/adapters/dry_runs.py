"""Asking the API server about the pods and peers of a spec before it is accepted: nothing is stored."""

from __future__ import annotations

import re

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import Spec
from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_errors import Forbidden, Invalid, NamespaceTerminating, QuotaExceeded
from servepipe_operator.adapters.kube_resource import NETWORK_POLICIES, PODS
from servepipe_operator.adapters.refusals import server_said
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.network import PEERS, policy_of
from servepipe_operator.objects.templates import pod_of, problems_of_templates, templates

__all__ = ["refusals"]


#: In the server's words about a field that is an object: that whole object, which says nothing that people want.
_OBJECT = re.compile(r"Invalid value: \{.*\}: ")
#: Before the words about a field of a body that does not fit the schema.
_TYPED = re.compile(r"^failed to create typed patch object \(.*?\): \.")


async def refusals(kube: Kube, owner: Owner, spec: Spec, image: str) -> tuple[Problem, ...]:
    """See `servepipe_operator.ports.Cluster.refusals`.

    Args:
        image: Of pods for which none is named.
    """
    if wrong := problems_of_templates(spec):
        return tuple(wrong)
    found = [*await _pods_refused(kube, owner, spec, image), *await _peers_refused(kube, owner, spec)]
    # What is wrong with the namespace or the account is wrong with every template.
    wheres: dict[str, list[str]] = {}
    for where, what in found:
        wheres.setdefault(what, []).append(where)
    return tuple(Problem(", ".join(where), what) for what, where in wheres.items())


async def _pods_refused(kube: Kube, owner: Owner, spec: Spec, image: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for one in templates(owner, spec, image):
        try:
            await kube.create(PODS, pod_of(owner, one.template), dry_run=True)
        except (NamespaceTerminating, QuotaExceeded):
            break  # says nothing about the template, and is met again when it matters
        except Invalid as error:
            found += [(one.where, _OBJECT.sub("", cause)) for cause in error.causes or (server_said(error),)]
        except Forbidden as error:
            if error.lacks_right:
                raise  # says nothing about the template either
            found.append((one.where, server_said(error)))
    return found


async def _peers_refused(kube: Kube, owner: Owner, spec: Spec) -> list[tuple[str, str]]:
    given = {
        "spec.ingress.from": spec.ingress.from_ if spec.ingress else None,
        "spec.monitoring.from": spec.monitoring.from_ if spec.monitoring else None,
    }
    found: list[tuple[str, str]] = []
    for where, peers in given.items():
        if not peers:
            continue
        try:
            await kube.apply(NETWORK_POLICIES, policy_of(owner, peers), dry_run=True)
        except (NamespaceTerminating, QuotaExceeded):
            break
        except Invalid as error:
            for cause in error.causes or (_TYPED.sub("", server_said(error)),):
                at, _, what = cause.replace(PEERS, where).partition(": ")
                found.append((at, what) if at.startswith(where) else (where, cause))
    return found

"""All pod templates that a spec leads to, so that the API server can be asked about them before it is accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from servepipe.api.problem import Problem
from servepipe.api.removals import unmarked
from servepipe.api.v1alpha1 import Cluster, Ingress, Spec
from servepipe_operator.engine.pools import DEFAULT_POOL, PodWish
from servepipe_operator.engine.revisions import node_identity, normalised_resources
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.wishes import ingress_wish, node_wish
from servepipe_operator.objects.environment import environment_of
from servepipe_operator.objects.merge import template_problems
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.pods import head_template, worker_template

__all__ = ["Template", "pod_of", "problems_of_templates", "templates"]


@dataclass(frozen=True, slots=True)
class Template:
    """One of them, and the field of the resource that it comes from."""

    where: str
    template: Json


def problems_of_templates(spec: Spec) -> list[Problem]:
    """What raw templates lack to be merged at all."""
    cluster = spec.cluster or Cluster()
    raw = {
        "spec.ingress.template": spec.ingress.template if spec.ingress else None,
        "spec.cluster.head.template": cluster.head.template if cluster.head else None,
        "spec.cluster.workers.template": cluster.workers.template if cluster.workers else None,
        **{f"spec.nodes.{name}.template": node.template for name, node in spec.nodes.items()},
    }
    found = []
    for where, marked in raw.items():
        template = unmarked(marked)
        found += [
            Problem(f"{where}.{key}", "this is not an object", "Leave it out, or write an object.")
            for key in ("metadata", "spec")
            if not isinstance((template or {}).get(key, {}), Mapping)
        ]
        for told in template_problems(template or {}, where):
            at, _, what = told.partition(": ")
            found.append(Problem(at, what))
    return found


def templates(owner: Owner, spec: Spec, image: str) -> list[Template]:
    """One for each kind of pod, the head's first. Inline nodes have none.

    Args:
        image: Of pods for which none is named.
    """
    cluster = spec.cluster or Cluster()
    head = cluster.head.to_json() if cluster.head else {}
    secrets = [one.to_json() for one in spec.image_pull_secrets or []]
    of_the_head = head_template(owner, head, head.get("image", image), secrets)
    environment = environment_of(of_the_head)
    found = [Template("spec.cluster.head", of_the_head)]
    seen = set()
    for where, wish in _wishes(spec):
        if (wish.pool, wish.digest) not in seen:
            seen.add((wish.pool, wish.digest))
            found.append(Template(where, worker_template(owner, wish, image, environment)))
    return found


def pod_of(owner: Owner, template: Json) -> Json:
    """A Pod such as KubeRay makes from a template, for a dry run."""
    metadata = {**template.get("metadata", {}), "generateName": f"{owner.name}-", "namespace": owner.namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _wishes(spec: Spec) -> Iterator[tuple[str, PodWish]]:
    ingress = spec.ingress or Ingress()
    identity: Json = {
        "image": spec.image,
        "template": unmarked(ingress.template),
        "resources": normalised_resources(ingress.resources.to_json()) if ingress.resources else {},
    }
    yield "spec.ingress", ingress_wish(identity, spec)
    for name, node in sorted(spec.nodes.items()):
        if node.placement != "Inline":
            wish = node_wish(name, node_identity(node, spec.image, ()), spec, spec.image)
            yield ("spec.cluster.workers" if wish.pool == DEFAULT_POOL else f"spec.nodes.{name}"), wish

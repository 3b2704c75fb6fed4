"""Where NetworkPolicies are tried: a few namespaces with pods that all reach one another until a policy forbids it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import policies
from chart_render import Helm, one
from policies import Cluster, Json, Row
from stand_ins import StandIn, plain, ray_pods

from servepipe_operator.controller.settings import from_environment
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.network import operator_peer

RAY_CLUSTER = "diamond-abcde"
#: Two namespaces with pipelines, the operator's, and those of callers and of monitoring.
ROLES = ("shop", "stock", "ops", "web", "monitoring")
RELEASE = "servepipe"
#: Of the callers' namespace.
TEAM = {"team": "web"}


class Scene:
    """Namespaces with pods that all reach one another as long as there is no policy."""

    def __init__(self, cluster: Cluster, image: str, chart: Helm, suffix: str) -> None:
        self.cluster, self.image, self.chart = cluster, image, chart
        self.names = {role: f"{role}-{suffix}" for role in ROLES}
        self.owner = Owner("diamond", self.names["shop"], "00000000-0000-0000-0000-000000000000", "servepipe")
        self.known: dict[str, str] = {}
        rendered = self.rendered({})
        template = one(rendered, "Deployment")["spec"]["template"]
        self.operator = template["metadata"]["labels"]
        environment = {each["name"]: each.get("value", "") for each in template["spec"]["containers"][0]["env"]}
        pod = {"SERVEPIPE_NAMESPACE": self.names["ops"], "SERVEPIPE_INSTANCE": "operator"}
        self.settings = from_environment({**environment, **pod})
        self.helm_test = one(rendered, "Pod")["metadata"]["labels"]

    def rendered(self, values: Json) -> list[Json]:
        """The chart's objects, of a release in the operator's namespace."""
        return self.chart.objects({"networkPolicy": {"enabled": True}} | values, RELEASE, self.names["ops"])

    def peer(self) -> Json:
        """The operator, as it lets itself in."""
        return operator_peer(self.names["ops"], dict(self.settings.pod_labels))

    def only(self, role: str) -> Json:
        """Any pod of a namespace, as a peer."""
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.names[role]}}}

    def address(self, pod: str) -> Json:
        return {"ipBlock": {"cidr": f"{self.known[pod]}/32"}}

    def start(self) -> None:
        labels: Mapping[str, Mapping[str, str]] = {"web": TEAM}
        policies.apply(self.cluster, [policies.namespace(self.names[role], labels.get(role)) for role in ROLES])
        pods = [
            *ray_pods(self.owner, RAY_CLUSTER, "shop"),
            *ray_pods(self.owner, "diamond-other", "shop", "other-")[:1],
            *ray_pods(self.owner, RAY_CLUSTER, "stock")[:1],
            plain("shop", "caller"),
            plain("ops", "operator", self.operator),
            plain("ops", "bystander"),
            plain("ops", "helm-test", self.helm_test),
            plain("ops", "api-server"),
            plain("web", "caller"),
            plain("web", "impostor", self.operator),
            plain("monitoring", "prometheus"),
        ]
        self.add(*pods)

    def add(self, *pods: StandIn) -> None:
        """Starts pods; returns when they are ready."""
        policies.apply(self.cluster, [pod.manifest(self.image, self.names[pod.namespace]) for pod in pods])
        for role in dict.fromkeys(pod.namespace for pod in pods):
            found = policies.addresses(self.cluster, self.names[role])
            self.known |= {f"{role}/{name}": address for name, address in found.items()}

    def end(self) -> None:
        self.cluster.kubectl("delete", "namespace", "--ignore-not-found", *self.names.values(), timeout=180)

    def set(self, objects: Sequence[Json]) -> None:
        """These policies, and no other."""
        for role in ROLES:
            self.cluster.kubectl("delete", "networkpolicies", "--all", "-n", self.names[role])
        policies.apply(self.cluster, objects)

    def hold(self, rows: Sequence[Row]) -> None:
        """Returns as soon as all rows are so, in which namespaces are called by their roles."""
        actual = [replace(row, source=self._actual(row.source)) for row in rows]
        policies.hold(self.cluster, actual, self.known)

    def _actual(self, pod: str) -> str:
        role, _, name = pod.partition("/")
        return f"{self.names[role]}/{name}"


def at(target: str, port: int, allowed: Sequence[str] = (), refused: Sequence[str] = ()) -> list[Row]:
    """Who reaches a port of a pod, and who does not."""
    return [Row(source, target, port, source in allowed) for source in (*allowed, *refused)]

"""The chart's alerts and dashboards: Prometheus' own parser takes them, and what they ask for is what the code says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bed.build import promcheck
from chart_render import MONITORING, Helm, Object, kinds, one
from reasons import reasons_in_the_code

from servepipe.api.v1alpha1 import KIND
from servepipe_operator.controller.metrics import Metrics

Json = dict[str, Any]
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
CONDITIONS = {"Accepted", "ClusterReady", "NodesReady", "Available", "Ready", "Stalled", "Reconciling"}
RESULTS = {"ok", "changing", "gone", "unreachable", "cancelled", "error"}
#: What Prometheus adds by itself.
OF_THE_TARGET = {"job", "namespace"}

_SELECTOR = re.compile(r"(servepipe_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@pytest.fixture(scope="module")
def objects(helm: Helm) -> list[Object]:
    return helm.objects({**MONITORING, "installation": "second"}, "svp", "ops")


@pytest.fixture(scope="module")
def rules(objects: list[Object]) -> list[Json]:
    return [rule for group in one(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def dashboards(objects: list[Object]) -> dict[str, Json]:
    return {
        name: json.loads(text) for each in objects if each["kind"] == "ConfigMap" for name, text in each["data"].items()
    }


def expressions(dashboards: dict[str, Json]) -> Iterator[str]:
    for board in dashboards.values():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield target["expr"]


def exported() -> dict[str, set[str]]:
    """The labels of each time series that the operator exports."""
    metrics = Metrics("1", "main")
    metrics.reconciled("ok", 1)
    metrics.requested("get", "services", 200, 1)
    metrics.pipelines([{"Ready": ("True", "Ready")}])
    metrics.waiting(["rayclusters.ray.io"])
    return {
        sample.name: set(sample.labels)
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def checked(*arguments: str, text: str = "") -> str:
    """What Prometheus' parsers have against something; "" for nothing."""
    done = subprocess.run([promcheck(), *arguments], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    assert (done.returncode == 0) == (not done.stdout)
    return done.stdout


def test_nothing_of_it_without_being_asked_for(helm: Helm) -> None:
    assert not {"ServiceMonitor", "PrometheusRule", "ConfigMap"} & set(kinds(helm.objects()))


def test_prometheus_takes_the_rules(objects: list[Object], tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    spec = one(objects, "PrometheusRule")["spec"]
    file.write_text(yaml.safe_dump(spec))
    assert checked("rules", str(file)) == ""
    spec["groups"][0]["rules"][0]["annotations"]["summary"] = "{{ $unknown }}"
    file.write_text(yaml.safe_dump(spec))
    assert 'undefined variable "$unknown"' in checked("rules", str(file))


def test_prometheus_takes_the_dashboards_expressions(dashboards: dict[str, Json]) -> None:
    found = [each.replace("$__rate_interval", "5m") for each in expressions(dashboards)]
    assert len(found) > 20
    assert checked("expressions", text="\n".join(found)) == ""
    assert "parse error" in checked("expressions", text="sum(x{) > 0")


def test_what_is_asked_for_is_exported(rules: list[Json], dashboards: dict[str, Json]) -> None:
    known = exported()
    asked = [rule["expr"] for rule in rules] + list(expressions(dashboards))
    used = set()
    for text in asked:
        selectors = _SELECTOR.findall(text)
        assert len(selectors) == len(re.findall(r"servepipe_\w+", text)) > 0, f"a metric without selector: {text}"
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", text) for name in names.split(", ")}
        for metric, matchers in selectors:
            assert metric in known, f"{metric} is not exported: {text}"
            used.add(metric)
            given = {name for name, _, _ in _MATCHER.findall(matchers)}
            assert given >= OF_THE_TARGET, f"it would count other installations: {text}"
            assert given | grouped <= known[metric] | OF_THE_TARGET, text
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} == families, "a metric that nothing shows"


def test_the_words_asked_for_are_those_of_the_code(rules: list[Json], dashboards: dict[str, Json]) -> None:
    words: dict[str, set[str]] = {}
    for text in [rule["expr"] for rule in rules] + list(expressions(dashboards)):
        for name, _, value in _MATCHER.findall(text):
            words.setdefault(name, set()).update(value.split("|"))
    assert words["condition"] <= CONDITIONS
    assert words["status"] <= {"True", "False", "Unknown"}
    assert words["reason"] <= reasons_in_the_code()
    assert words["result"] <= RESULTS


@pytest.mark.parametrize(
    ("condition", "status", "reason", "alerts"),
    [
        ("Available", "True", "Answering", set()),
        ("Available", "False", "NodesNotAnswering", {"ServePipelineNotAvailable"}),
        ("Available", "Unknown", "NoAnswer", {"ServePipelineNotAvailable"}),
        ("Available", "False", "Suspended", set()),
        ("Ready", "False", "Upgrading", set()),
        ("Ready", "False", "BuildFailed", set()),
        ("Stalled", "True", "BuildFailed", {"ServePipelineUpgradeStalled"}),
        ("Stalled", "True", "ProgressDeadlineExceeded", {"ServePipelineUpgradeStalled"}),
        ("Stalled", "True", "Forbidden", {"ServePipelineStalled"}),
        ("Stalled", "True", "InvalidSpec", {"ServePipelineStalled"}),
        ("ClusterReady", "False", "InsufficientCapacity", {"ServePipelineWithoutCapacity"}),
        ("ClusterReady", "False", "PodsNotReady", set()),
    ],
)
def test_which_alert_a_condition_raises(
    rules: list[Json], condition: str, status: str, reason: str, alerts: set[str]
) -> None:
    metrics = Metrics("1", "main")
    metrics.pipelines([{condition: (status, reason)}])
    [sample] = [
        sample
        for family in metrics.registry.collect()
        for sample in family.samples
        if family.name == "servepipe_pipelines"
    ]
    labels = sample.labels | {"job": "svp-servepipe", "namespace": "ops"}
    raised = {
        rule["alert"]
        for rule in rules
        for metric, matchers in _SELECTOR.findall(rule["expr"])
        if metric == sample.name
        and all(_fits(labels[name], how, value) for name, how, value in _MATCHER.findall(matchers))
    }
    assert raised == alerts


def _fits(text: str, how: str, value: str) -> bool:
    same = re.fullmatch(value, text) is not None if "~" in how else text == value
    return same != how.startswith("!")


def test_every_stalled_pipeline_is_in_one_of_two_alerts(rules: list[Json]) -> None:
    about = {rule["alert"]: rule["expr"] for rule in rules}
    [upgrade] = re.findall(r'reason=~"([^"]+)"', about["ServePipelineUpgradeStalled"])
    [others] = re.findall(r'reason!~"([^"]+)"', about["ServePipelineStalled"])
    assert upgrade == others


def test_alerts_are_of_this_release(rules: list[Json], objects: list[Object]) -> None:
    service = one(objects, "Service")
    monitor = one(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    for rule in rules:
        assert f'job="{service["metadata"]["name"]}",namespace="ops"' in rule["expr"]
        assert rule["annotations"]["description"].startswith("installation second: ")
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_what_is_set_is_in_them(helm: Helm) -> None:
    rule = {"enabled": True, "labels": {"release": "kps"}, "alertLabels": {"team": "ml"}, "runbookUrl": "https://x/y/"}
    monitor = {"enabled": True, "labels": {"release": "kps"}, "interval": "1m", "scrapeTimeout": "9s"}
    boards = {"enabled": True, "labels": {"folder": "x"}, "annotations": {"grafana_folder": "ML"}}
    objects = helm.objects({"prometheusRule": rule, "serviceMonitor": monitor, "dashboards": boards})
    alert = one(objects, "PrometheusRule")["spec"]["groups"][0]["rules"][0]
    assert alert["labels"]["team"] == "ml"
    assert alert["annotations"]["runbook_url"] == f"https://x/y/{alert['alert']}.md"
    for kind in ("PrometheusRule", "ServiceMonitor"):
        assert one(objects, kind)["metadata"]["labels"]["release"] == "kps"
    assert one(objects, "ServiceMonitor")["spec"]["endpoints"][0]["interval"] == "1m"
    metadata = next(each["metadata"] for each in objects if each["kind"] == "ConfigMap")
    assert (metadata["labels"]["folder"], metadata["labels"]["grafana_dashboard"]) == ("x", "1")
    assert metadata["annotations"] == {"grafana_folder": "ML"}


def test_each_alert_has_its_runbook_and_each_runbook_its_alert(rules: list[Json]) -> None:
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names))
    assert {f"{name}.md" for name in names} == {path.name for path in RUNBOOKS.glob("*.md")}
    for name in names:
        page = (RUNBOOKS / f"{name}.md").read_text()
        assert page.startswith(f"# {name}\n")
        for heading in ("**Means:**", "**Callers**", "**Look", "**Do"):
            assert heading in page, f"{name}: no {heading}"


def test_dashboards_are_whole(dashboards: dict[str, Json]) -> None:
    assert {board["title"] for board in dashboards.values()} == {f"{KIND}s", f"{KIND} operator"}
    for board in dashboards.values():
        assert [each["name"] for each in board["templating"]["list"]] == ["datasource", "namespace", "job"]
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken = [
            (x, y)
            for panel in panels
            for place in [panel["gridPos"]]
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(taken) == len(set(taken)), "panels overlap"
        assert max(x for x, _ in taken) < 24

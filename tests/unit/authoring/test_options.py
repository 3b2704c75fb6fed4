"""Options by Ray's names or the resource's, and what they become."""

import pytest

from servepipe import ServeInputNode, build, remote
from servepipe.authoring.options import INGRESS, NODE, node_fields
from servepipe.errors import GraphError, ResourceError


@remote
class Model:
    def forward(self, x):
        return x


@remote
def ensemble(x):
    return x


def app_of(**options):
    with ServeInputNode() as i:
        m1 = Model.options(**options).bind()
        out = ensemble.bind(m1.forward.bind(i))
    return build(out, name="options")


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"num_replicas": 3}, {"replicas": 3}),
        ({"replicas": 0}, {"replicas": 0}),
        ({"num_cpus": 0.5}, {"resources": {"cpu": "500m"}}),
        ({"num_cpus": 2.0, "num_gpus": 1}, {"resources": {"cpu": "2", "gpu": "1"}}),
        ({"num_cpus": "250m"}, {"resources": {"cpu": "250m"}}),
        ({"memory": 3 * 2**30}, {"resources": {"memory": "3Gi"}}),
        ({"memory": 1000}, {"resources": {"memory": "1000"}}),
        ({"memory": 0}, {"resources": {"memory": "0"}}),
        ({"memory": "16Gi"}, {"resources": {"memory": "16Gi"}}),
        ({"resources": {"special": 2}}, {"resources": {"custom": {"special": "2"}}}),
        (
            {"resources": {"cpu": 1, "memory": "1Gi", "custom": {"x": 0.5}}, "num_gpus": 0.25},
            {"resources": {"cpu": "1", "memory": "1Gi", "custom": {"x": "500m"}, "gpu": "250m"}},
        ),
        ({"resources": {}}, {"resources": {}}),
        ({"runtime_env": {"pip": ["x"]}}, {"runtimeEnv": {"pip": ["x"]}}),
        (
            {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3, "upscale_delay_s": 5}},
            {"autoscaling": {"minReplicas": 1, "maxReplicas": 3, "upscaleDelaySeconds": 5}},
        ),
        ({"autoscaling": {"maxReplicas": 3}}, {"autoscaling": {"maxReplicas": 3}}),
        ({"max_ongoing_requests": 7, "max_queued_requests": 9}, {"maxOngoingRequests": 7, "maxQueuedRequests": 9}),
        ({"graceful_shutdown_timeout_s": 5}, {"drainSeconds": 5}),
        ({"idempotent": False}, {"idempotent": False}),
        ({"access_log": True}, {"accessLog": True}),
        (
            {"health_check_period_s": 5, "health_check_timeout_s": 6},
            {"healthCheck": {"periodSeconds": 5, "timeoutSeconds": 6}},
        ),
        ({"health_check": {"period_seconds": 5}}, {"healthCheck": {"periodSeconds": 5}}),
        ({"user_config": {"threshold": 0.5}}, {"userConfig": {"threshold": 0.5}}),
        ({"env": {"A": "b"}}, {"env": [{"name": "A", "value": "b"}]}),
        ({"env": [{"name": "A", "valueFrom": {}}]}, {"env": [{"name": "A", "valueFrom": {}}]}),
        ({"maxOngoingRequests": 7, "drainSeconds": 3}, {"maxOngoingRequests": 7, "drainSeconds": 3}),
        (
            {"image": "a:b", "blocking": False, "placement": "Dedicated"},
            {"image": "a:b", "blocking": False, "placement": "Dedicated"},
        ),
    ],
)
def test_what_options_become(options, fields):
    assert node_fields(options, NODE, "it", "here") == fields
    app = app_of()
    app.m1.set_options(**options)
    assert app.m1.options == fields
    assert app_of(**options).m1.options == fields
    written = app.to_dict()["spec"]["nodes"]["m1"]
    assert {name: written[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"num_replica": 3}, "no option 'num_replica'"),
        ({"num_replicas": -1}, "whole number of replicas"),
        ({"num_replicas": "auto"}, "autoscaling"),
        ({"num_replicas": True}, "whole number"),
        ({"num_cpus": -1}, "not an amount"),
        ({"num_cpus": float("nan")}, "not an amount"),
        ({"num_cpus": 0.0001}, "finer than a thousandth"),
        ({"num_cpus": None}, "expected a number"),
        ({"memory": 0.5}, "whole number of bytes"),
        ({"num_cpus": 10**400}, "an integer beyond 64 bits is not an amount"),
        ({"resources": 5}, "expected a dict"),
        ({"resources": {"custom": 5}}, "expected a dict of custom resources"),
        ({"resources": {"cpu": 1, "tpu": 2}}, "'tpu' stands beside cpu"),
        ({"resources": {"cpu": 1, "GPU": 2}}, "Write 'gpu'"),
        ({"resources": {"GPU": 2}}, "Write num_gpus="),
        ({"autoscaling": 5}, "expected a dict"),
        ({"autoscaling": {"min_replica": 5}}, "unknown key 'min_replica'. Did you mean 'min_replicas'"),
        ({"max_restarts": 5}, "no option 'max_restarts'"),
    ],
)
def test_what_options_cannot_be(options, what):
    app = app_of()
    with pytest.raises(GraphError, match=what) as caught:
        app.m1.set_options(**options)
    assert "test_options.py:" in caught.value.where
    with pytest.raises(GraphError, match=what) as caught:
        Model.options(**options)
    with pytest.raises(GraphError, match=what):
        remote(**options)(Model)


def test_the_closest_option_is_suggested_or_all_are_listed():
    with pytest.raises(GraphError) as caught:
        Model.options(num_cpu=1)
    assert caught.value.fix == "Did you mean 'num_cpus'?"
    with pytest.raises(GraphError) as caught:
        Model.options(zzz=1)
    assert caught.value.fix.startswith("Known: ")


def test_values_that_the_resource_refuses_name_the_field():
    app = app_of()
    app.m1.set_options(placement="Somewhere")
    with pytest.raises(ResourceError) as caught:
        app.to_yaml()
    assert "spec.nodes.m1.placement" in str(caught.value)


def test_later_options_replace_earlier_ones_and_replicas_exclude_autoscaling():
    app = app_of(num_replicas=2, num_cpus=1)
    app.m1.set_options(num_gpus=1)
    app.m1.set_options(num_cpus=3, autoscaling={"max_replicas": 2})
    assert app.m1.options == {"resources": {"cpu": "3", "gpu": "1"}, "autoscaling": {"maxReplicas": 2}}
    app.m1.set_options(replicas=1)
    assert "autoscaling" not in app.m1.options


def test_the_decorator_takes_options_and_wrapped_things_take_more():
    @remote(num_cpus=1)
    class Decorated:
        pass

    @remote()
    def plain():
        return 1

    with pytest.raises(GraphError, match="no option 'nmae'"):
        remote(plain, nmae="x")
    assert remote(Decorated, num_gpus=1)._fields == {"resources": {"cpu": "1", "gpu": "1"}}
    assert plain._fields == {}
    with pytest.raises(GraphError, match="expected a str"):
        Decorated.options(name=5)


def test_options_of_the_ingress():
    app = app_of()
    app.ingress.set_options(num_replicas=10, route_prefix="/x", request_timeout_s=5, num_cpus=1, grpc={})
    app.ingress.set_options(maxBodyBytes=5, service={"port": 80})
    assert app.to_dict()["spec"]["ingress"] == {
        "replicas": 10,
        "route": "/x",
        "requestTimeoutSeconds": 5,
        "resources": {"cpu": "1"},
        "grpc": {},
        "maxBodyBytes": 5,
        "service": {"port": 80},
    }
    with pytest.raises(GraphError, match="the ingress takes no option 'runtime_env'"):
        app.ingress.set_options(runtime_env={})


def test_every_option_is_a_field_of_the_models():
    from servepipe.api.v1alpha1 import Ingress, NodeSpec

    samples = {
        **{key: {"max_replicas": 1} for key in ("autoscaling", "autoscaling_config")},
        **{key: {} for key in ("resources", "health_check", "env")},
        **dict.fromkeys(("num_cpus", "num_gpus", "memory", "num_replicas", "replicas"), 1),
    }
    for rules, model in ((NODE, NodeSpec), (INGRESS, Ingress)):
        known = {field.alias or name for name, field in model.model_fields.items()}
        for option in rules:
            assert set(node_fields({option: samples.get(option, 1)}, rules, "it", "")) <= known, option


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"timeout": 0}, "seconds"),
        ({"timeout": "5s"}, "seconds"),
        ({"timeout": True}, "seconds"),
        ({"timeout": 0.0015}, "whole milliseconds"),
        ({"retries": -1}, "whole number"),
        ({"retries": 1.5}, "whole number"),
        ({"retries": 101}, "whole number"),
        ({"retry": 1}, "no option 'retry'"),
        ({"name": 5}, "expected a str"),
    ],
)
def test_options_of_steps(options, what):
    with pytest.raises(GraphError, match=what) as caught:
        Model.bind().forward.options(**options)
    assert "test_options.py:" in caught.value.where
    if "name" not in options:
        with pytest.raises(GraphError, match=what):
            ensemble.options(**options)


def test_an_option_of_the_node_on_a_method_says_where_it_belongs():
    with pytest.raises(GraphError) as caught:
        Model.bind().forward.options(num_cpus=1)
    assert "belongs to the node" in caught.value.fix


def test_timeouts_and_retries_are_the_steps_own():
    with ServeInputNode() as i:
        m1 = Model.bind()
        slow = m1.forward.options(timeout=0.5).options(retries=2).bind(i)
        out = ensemble.options(timeout=90).bind(slow)
    steps = build(out, name="timed").to_dict()["spec"]["graph"]["steps"]
    assert (steps[0]["timeout"], steps[0]["retries"]) == ("500ms", 2)
    assert (steps[1]["timeout"], steps[1].get("retries")) == ("1m30s", None)

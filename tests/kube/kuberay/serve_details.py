"""Simulated Serve's answer to ``GET /api/serve/applications/``: the fields of ``ServeInstanceDetails`` that matter."""

from __future__ import annotations

from typing import Any

from kuberay.slots import SlotServe

Object = dict[str, Any]


def details(serve: SlotServe) -> Object:
    """JSON of everything that runs."""
    serve.settle()
    found = serve.observe()
    if found is None:
        return {
            "controller_info": {},
            "proxy_location": None,
            "http_options": None,
            "grpc_options": None,
            "proxies": {},
            "deploy_mode": None,
            "applications": {},
            "target_capacity": None,
        }
    config = serve.puts[-1][1] if serve.puts else {}
    return {
        "controller_info": {"node_id": "0" * 56, "node_ip": "127.0.0.1", "actor_name": "SERVE_CONTROLLER_ACTOR"},
        "proxy_location": config.get("proxy_location", "EveryNode"),
        "http_options": {"host": "0.0.0.0", "port": 8000, **config.get("http_options", {})},
        "grpc_options": config.get("grpc_options"),
        "proxies": {},
        "applications": {name: _application(serve, name, application) for name, application in found.items()},
        "target_capacity": None,
    }


def _application(serve: SlotServe, name: str, seen: Any) -> Object:
    deployments: Object = {}
    if seen.deployment_status:
        deployment = seen.config["deployments"][0]
        deployments[deployment["name"]] = {
            "name": deployment["name"],
            "status": seen.deployment_status,
            "status_trigger": "CONFIG_UPDATE_COMPLETED",
            "message": seen.deployment_message,
            "deployment_config": deployment,
            "target_num_replicas": seen.target_replicas,
            "required_resources": deployment.get("ray_actor_options", {}),
            "replicas": [_replica(serve, name, replica) for replica in seen.replicas],
        }
    return {
        "name": name,
        "route_prefix": seen.config["route_prefix"],
        "docs_path": None,
        "status": seen.status,
        "message": seen.message,
        "last_deployed_time_s": seen.deployed_at,
        "deployed_app_config": seen.config,
        "source": "declarative",
        "deployments": deployments,
    }


def _replica(serve: SlotServe, application: str, replica: Any) -> Object:
    found = next((one for one in serve.applications[application].replicas if one.id == replica.id), None)
    node = serve.nodes.get(found.node) if found is not None else None
    return {
        "replica_id": replica.id,
        "state": replica.state,
        "pid": replica.pid,
        "actor_name": f"SERVE_REPLICA::{application}#{replica.id}",
        "actor_id": None,
        "node_id": node.name if node else None,
        "node_ip": node.ip if node else None,
        "start_time_s": found.placed_at if found is not None and found.placed_at else 0.0,
        "log_file_path": f"/serve/replica_{replica.id.replace('#', '_')}.log",
    }

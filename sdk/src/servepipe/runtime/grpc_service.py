"""The pipeline over gRPC: one unary method with a JSON payload, in messages that every gRPC library has.

    syntax = "proto3";
    package servepipe.v1;
    import "google/protobuf/wrappers.proto";

    service Pipeline {
      // The request's value is what a POST to the pipeline's route would carry: a JSON array (positional arguments), an
      // object (keyword arguments where the graph reads keywords), or another JSON value (the single argument). A
      // preprocessor does not run. The answer's value is JSON, or the bytes themselves where the graph answers bytes.
      rpc Run(google.protobuf.BytesValue) returns (google.protobuf.BytesValue);
    }

Metadata: ``application: ingress`` is required, because Serve routes by it; ``request_id`` is optional. Errors have a
status code, and as details the same JSON object as under "error" over HTTP.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

__all__ = ["METHOD", "SERVICE", "STATUS_CODES", "PipelineStub", "add_servicer"]

SERVICE = "servepipe.v1.Pipeline"
METHOD = "Run"

STATUS_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's code for each HTTP status; UNKNOWN for the others: user code asked for them, or it is unknown what a lost
replica did (502)."""


def add_servicer(servicer: Any, server: Any) -> None:
    """For ``grpc_options.grpc_servicer_functions``; has the shape of the functions that protoc generates."""
    handler = grpc.unary_unary_rpc_method_handler(
        getattr(servicer, METHOD),
        request_deserializer=BytesValue.FromString,
        response_serializer=BytesValue.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))


class PipelineStub:
    """A client: ``stub.Run(BytesValue(value=b"[1, 2, 3]"), metadata=[("application", "ingress")])``."""

    def __init__(self, channel: Any) -> None:
        self.Run = channel.unary_unary(
            f"/{SERVICE}/{METHOD}",
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=BytesValue.FromString,
        )

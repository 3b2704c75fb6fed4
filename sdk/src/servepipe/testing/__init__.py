"""Test a pipeline over HTTP, in this process and without Ray.

    from servepipe.testing import TestClient

    with TestClient(app, fakes={"m1": FakeModel()}) as client:
        assert client.post("/", json=[1, 2, 3]).json() == 8

Requests go through the ingress's own HTTP code, so statuses, errors and the forms of answers are those of production.
"""

from __future__ import annotations

from servepipe.testing.client import Response, TestClient

__all__ = ["Response", "TestClient"]

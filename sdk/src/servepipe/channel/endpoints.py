"""Where a replica listens, as plain data that travels with its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Args:
    application: The Serve application.
    replica: The replica's id in it.
    token: What both sides have to know. Whoever can read it can run code in the replica.
    path: Its unix socket; empty: none.
    host: Its address for other machines; empty: it listens on none.
    port: Its TCP port there.
    machine: Names the machine, or the container, in which ``path`` means something.
    tls: Whether TLS is spoken at ``host``.
    """

    application: str
    replica: str
    token: bytes
    path: str = ""
    host: str = ""
    port: int = 0
    machine: str = ""
    tls: bool = False

    def __repr__(self) -> str:
        # Without the token: this ends in logs.
        return f"Endpoint({self.replica!r}, {self.address!r})"

    @property
    def address(self) -> str:
        """For logs."""
        return self.path or f"{self.host}:{self.port}"

    def encode(self) -> dict[str, Any]:
        """As JSON; the inverse of `parse`."""
        return {
            "version": 1,
            "application": self.application,
            "replica": self.replica,
            "token": self.token.hex(),
            "path": self.path,
            "host": self.host,
            "port": self.port,
            "machine": self.machine,
            "tls": self.tls,
        }

    @classmethod
    def parse(cls, data: Any) -> Endpoint | None:
        """None where ``data`` is not what this version of servepipe writes."""
        if not isinstance(data, Mapping) or data.get("version") != 1:
            return None
        fields = {key: value for key, value in data.items() if key != "version"}
        try:
            endpoint = cls(**fields | {"token": bytes.fromhex(fields["token"])})
        except (TypeError, KeyError, ValueError):
            return None
        texts = (endpoint.application, endpoint.replica, endpoint.path, endpoint.host, endpoint.machine)
        if not all(isinstance(text, str) for text in texts) or type(endpoint.port) is not int:
            return None
        return endpoint

    def seen_from(self, machine: str) -> Endpoint | None:
        """The one way to get there from ``machine``: the socket in the same place, else TCP; None: there is none."""
        if self.path and self.machine == machine:
            return Endpoint(self.application, self.replica, self.token, path=self.path, machine=self.machine)
        if self.host and self.port:
            return Endpoint(self.application, self.replica, self.token, host=self.host, port=self.port, tls=self.tls)
        return None

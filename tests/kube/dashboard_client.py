"""``python dashboard_client.py SERVICE NAMESPACE ADDRESS``: the way ``service`` in a process with a DNS of its own.

Run in namespaces of its own, see `PodNetwork.beside_the_pods`: it puts a resolv.conf of its own in place, answers the
questions itself on port 53 of loopback, and prints the name that was asked for and what the dashboard said, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading

from servepipe_operator.adapters.dashboard import Dashboard, Place
from servepipe_operator.adapters.kube_access import Access

A, AAAA = 1, 28
NXDOMAIN = 3


def use_dns(names: dict[str, str], asked: list[str]) -> None:
    """Answer for ``names`` (with their IPv4 addresses) on 127.0.0.1:53, and let this process ask there."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def serve() -> None:
        while True:
            question, client = server.recvfrom(4096)
            server.sendto(_answer(question, names, asked), client)

    threading.Thread(target=serve, daemon=True).start()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
        config.write("nameserver 127.0.0.1\n")
        config.flush()
        # Only in this mount namespace, and with it the mount ends.
        subprocess.run(["mount", "--bind", config.name, "/etc/resolv.conf"], check=True)


def _answer(question: bytes, names: dict[str, str], asked: list[str]) -> bytes:
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    name = ".".join(labels)
    (kind,) = struct.unpack_from(">H", question, at + 1)
    asked.append(name)
    address = names.get(name)
    found = address is not None and kind == A
    flags = 0x8180 if address is not None else 0x8180 | NXDOMAIN
    answer = question[:2] + struct.pack(">5H", flags, 1, int(found), 0, 0) + question[12 : at + 5]
    if address is not None and found:
        answer += struct.pack(">3HIH", 0xC00C, A, 1, 1, 4) + socket.inet_aton(address)
    return answer


async def ask(service: str, namespace: str) -> dict[str, object]:
    """Through the adapter, as the operator does."""

    async def credentials() -> dict[str, str]:
        return {"authorization": "Bearer of the API server"}

    dashboard = Dashboard("service", Access("https://127.0.0.1:1", credentials), token="of-ray")
    head = Place(namespace, service, 8265)
    try:
        version = await dashboard.ray_version(head)
        await dashboard.serve(head).put({"applications": []})
        applications = await dashboard.serve(head).applications()
    finally:
        await dashboard.close()
    return {"version": version, "applications": applications}


def main() -> None:
    service, namespace, address = sys.argv[1:]
    asked: list[str] = []
    use_dns({f"{service}.{namespace}.svc.cluster.local": address}, asked)
    found = asyncio.run(ask(service, namespace))
    print(json.dumps({**found, "asked": sorted(set(asked))}))


if __name__ == "__main__":
    main()

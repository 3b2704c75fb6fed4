"""A node, and as much of its kubelet as `kubectl port-forward` needs: an HTTPS server that leads to ports of pods.

The API server proxies ``pods/NAME/portforward`` to it. It speaks ``v4.channel.k8s.io`` over WebSocket, as kubelets
do: two channels per port, for bytes and for an error, which begin with the port's number; no half-close. Pods are on
it whose ``spec.nodeName`` says so; a port of a pod is where the pod's status has its address, unless `leads` says
otherwise.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiohttp import WSCloseCode, WSMsgType, web
from bed.client import Object
from bed.control_plane import ControlPlane
from in_thread import LoopThread

PROTOCOL = "v4.channel.k8s.io"
NODES = "/api/v1/nodes"
DIAL_S = 10.0


class Kubelet:
    """See the module. `leave` and `come_back` are a node that is cut off for a while.

    Attributes:
        leads: Where a port of a pod (namespace, name, port) is, if not at the pod's address.
        seen: The pods and ports that were asked for, in order.
        speaks: The subprotocols that it offers.
    """

    def __init__(self, plane: ControlPlane, node: str) -> None:
        self.plane, self.node = plane, node
        self.leads: dict[tuple[str, str, int], tuple[str, int]] = {}
        self.seen: list[tuple[str, int]] = []
        self.speaks: tuple[str, ...] = (PROTOCOL,)
        self._loop = LoopThread(f"kubelet-{node}")
        self._port = 0
        self._runner: web.AppRunner | None = None

    def come_back(self) -> None:
        """Listen; on the same port again."""
        self._loop.call(self._listen())

    def leave(self) -> None:
        """Every connection ends without a word, and none can be made."""
        self._loop.call(self._close())

    def start(self) -> None:
        """Listen, and have a node whose pods are here."""
        self.come_back()
        self.plane.api.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
        }
        self.plane.api.merge(f"{NODES}/{self.node}/status", {"status": status})

    def stop(self) -> None:
        """The node is gone too, and with it, after a while, its pods."""
        self.plane.api.delete(f"{NODES}/{self.node}")
        self.leave()
        self._loop.stop()

    async def _listen(self) -> None:
        if self._runner is not None:
            return
        app = web.Application()
        app.router.add_get("/portForward/{namespace}/{pod}", self._port_forward)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.plane.authority))
        context.load_cert_chain(*self.plane.kubelet)
        context.verify_mode = ssl.CERT_REQUIRED
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=context, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        if self._runner is None:
            return
        assert self._runner.server is not None
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._runner = None

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=self.speaks)
        with suppress(ConnectionError):  # the API server may have gone meanwhile, or this node
            await self._forward(request, websocket)
        return websocket

    async def _forward(self, request: web.Request, websocket: web.WebSocketResponse) -> None:
        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        port = int(request.query["port"])
        self.seen.append((pod, port))
        await websocket.prepare(request)
        for channel in (0, 1):
            await websocket.send_bytes(bytes((channel,)) + port.to_bytes(2, "little"))
        try:
            address = self.leads.get((namespace, pod, port)) or (await self._address(namespace, pod), port)
            reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), DIAL_S)
        except OSError as error:
            said = f"error forwarding port {port} to pod {pod}, uid : failed to connect to localhost:{port}: {error}"
            await websocket.send_bytes(b"\1" + said.encode())
            await websocket.close()
            return
        try:
            await _carry(websocket, reader, writer)
        finally:
            writer.close()

    async def _address(self, namespace: str, pod: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        return str((await asyncio.to_thread(self.plane.api.get, path))["status"]["podIP"])


async def _carry(websocket: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes in both directions, until one side ends."""

    async def down() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 15):
                await websocket.send_bytes(b"\0" + data)
        await websocket.close(code=WSCloseCode.OK)

    downward = asyncio.create_task(down())
    try:
        async for message in websocket:
            if message.type is WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
                await writer.drain()
    finally:
        downward.cancel()


@contextmanager
def fake_kubelet(plane: ControlPlane, node: str) -> Iterator[Kubelet]:
    """A node of this name with its kubelet."""
    kubelet = Kubelet(plane, node)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.stop()


def put_on(plane: ControlPlane, node: str, namespace: str, name: str, labels: dict[str, str]) -> Object:
    """A pod on a node that is ready; its address is of no use."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{"name": "ray", "image": "ray"}]}
    plane.api.create(pods, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    status = {
        "phase": "Running",
        "podIP": "192.0.2.1",
        "podIPs": [{"ip": "192.0.2.1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return plane.api.merge(f"{pods}/{name}/status", {"status": status})

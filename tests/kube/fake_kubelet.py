"""A node, and as much of its kubelet as `kubectl port-forward` needs: an HTTPS server that leads to ports of pods.

The API server proxies ``pods/NAME/portforward`` to it. It speaks ``v4.channel.k8s.io`` over WebSocket, as kubelets
do: two channels per port, for bytes and for an error, which begin with the port's number; no half-close. Pods are on
it whose ``spec.nodeName`` says so; a port of a pod is where the pod's status has its address, unless `leads` says
otherwise.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aiohttp import WSCloseCode, WSMsgType, web
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.wire import Wire
from in_thread import LoopThread

PROTOCOL = "v4.channel.k8s.io"
NODES = "/api/v1/nodes"
DIAL_S = 10.0


class Kubelet:
    """See the module. `wire` is what the API server reaches it over: it can be cut.

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
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._loop = LoopThread(f"kubelet-{node}")
        self._runner, port = self._loop.call(self._listen())
        self.wire = Wire(f"https://127.0.0.1:{port}")
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": int(self.wire.url.rpartition(":")[2])}},
        }
        plane.api.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
        plane.api.merge(f"{NODES}/{node}/status", {"status": status})

    def freeze(self) -> None:
        """It takes connections and keeps them, and nothing comes over them until `thaw`."""
        self._loop.call(_do(self._thawed.clear))

    def thaw(self) -> None:
        self._loop.call(_do(self._thawed.set))

    def stop(self) -> None:
        """The node is gone too, and with it, after a while, its pods."""
        self.plane.api.delete(f"{NODES}/{self.node}")
        self.wire.close()
        self._loop.call(self._runner.cleanup())
        self._loop.stop()

    async def _listen(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_get("/portForward/{namespace}/{pod}", self._port_forward)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.plane.authority))
        context.load_cert_chain(*self.plane.kubelet)
        context.verify_mode = ssl.CERT_REQUIRED
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return runner, runner.addresses[0][1]

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=self.speaks)
        with suppress(ConnectionError):  # the API server may have gone meanwhile, or this node
            await self._forward(request, websocket)
        return websocket

    async def _forward(self, request: web.Request, websocket: web.WebSocketResponse) -> None:
        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        port = int(request.query["port"])
        self.seen.append((pod, port))
        await self._thawed.wait()
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
            await self._carry(websocket, reader, writer)
        finally:
            writer.close()

    async def _carry(
        self, websocket: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Bytes in both directions, until one side ends."""

        async def down() -> None:
            with suppress(ConnectionError):
                while data := await reader.read(1 << 15):
                    await self._thawed.wait()
                    await websocket.send_bytes(b"\0" + data)
            await websocket.close(code=WSCloseCode.OK)

        downward = asyncio.create_task(down())
        try:
            async for message in websocket:
                await self._thawed.wait()
                if message.type is WSMsgType.BINARY and message.data[0] == 0:
                    writer.write(message.data[1:])
                    await writer.drain()
        finally:
            downward.cancel()

    async def _address(self, namespace: str, pod: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        return str((await asyncio.to_thread(self.plane.api.get, path))["status"]["podIP"])


async def _do(what: Callable[[], None]) -> None:
    what()


@contextmanager
def fake_kubelet(plane: ControlPlane, node: str) -> Iterator[Kubelet]:
    """A node of this name with its kubelet."""
    kubelet = Kubelet(plane, node)
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

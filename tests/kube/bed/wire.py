"""A connection between a client and the API server that a test can cut: TCP, forwarded as it is."""

import contextlib
import json
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit


class Wire:
    """Forwards a free loopback port to ``url``; TLS goes through untouched, since the certificate is for 127.0.0.1.

    Nothing that happened while it was cut is in a buffer somewhere: who was connected has to ask anew.
    """

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        assert target.hostname is not None
        assert target.port is not None
        self._target = (target.hostname, target.port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._cut = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def kubeconfig(self, kubeconfig: Path) -> Path:
        """Another one beside it that goes over this wire."""
        content = json.loads(kubeconfig.read_text())
        content["clusters"][0]["cluster"]["server"] = self.url
        path = kubeconfig.with_suffix(f".{self._server.getsockname()[1]}")
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
        return path

    def cut(self) -> None:
        """Ends all connections; new ones are taken and ended at once."""
        with self._lock:
            self._cut = True
            ended, self._open = self._open, set()
        for one in ended:
            _end(one)

    def mend(self) -> None:
        """New connections work again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        _end(self._server)
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, timeout=10)
        except OSError:
            _end(near)
            return
        far.settimeout(None)
        with self._lock:
            cut = self._cut
            if not cut:
                self._open |= {near, far}
        if cut:
            _end(near)
            _end(far)
            return
        threading.Thread(target=self._copy, args=(near, far), daemon=True).start()
        self._copy(far, near)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()

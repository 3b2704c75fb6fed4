"""The process that holds one run's Ray: started by `LocalRay`, ends with whoever started it.

Ray's processes are this process's children, and it adopts what they leave behind (a HAProxy whose proxy actor was
killed). Standard input is the life line: one JSON line per request, and its end means that the owner is gone, however
it went. Then everything below this process is ended, so that ``kill -9`` of ``servepipe up`` leaves nothing running.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

import psutil

from servepipe_operator.adapters.processes import Process, adopt_orphans, descendants, end

__all__ = ["main"]

GRACE_S = 3.0
EXIT_WITHOUT_OWNER_S = 15.0


def main() -> None:
    """Read the options, start Ray, answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the owner's affair
    adopt_orphans()
    requests = sys.stdin.buffer
    # What Ray or its libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    options = json.loads(requests.readline() or b"null")
    if options is None:
        return
    started = threading.Event()
    lines: list[bytes] = []
    arrived = threading.Condition()

    def read() -> None:
        # Also while Ray starts: an owner that goes then must not wait for it.
        for line in requests:
            with arrived:
                lines.append(line)
                arrived.notify()
        with arrived:
            lines.append(b"")
            arrived.notify()
        if started.is_set():
            time.sleep(EXIT_WITHOUT_OWNER_S)  # the main thread ends things in order, but gets no longer than this
        _end_everything(1)

    threading.Thread(target=read, name="life line", daemon=True).start()
    try:
        address = _start(options)
    except BaseException as error:
        traceback.print_exc()
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        _end_everything(1)
    started.set()
    # Ray's own handler of SIGTERM waits for drains that a single machine has no use for.
    signal.signal(signal.SIGTERM, lambda *_: _end_everything(0))
    answers.write(json.dumps(address) + "\n")
    while True:
        with arrived:
            arrived.wait_for(lambda: bool(lines))
            line = lines.pop(0)
        if not line:
            break
        answers.write(json.dumps(_capacity()) + "\n")
    _end_everything(0)


def _start(options: dict[str, Any]) -> dict[str, Any]:
    import ray
    from ray._private import parameter

    create = parameter.RayParams.__init__

    def with_what_init_has_no_argument_for(self: Any, *args: Any, **kwargs: Any) -> None:
        # Else 52365, even where that is another Ray's.
        kwargs.setdefault("dashboard_agent_listen_port", 0)
        # The process that sends what workers print to a driver; ours does not listen (`log_to_driver`).
        kwargs.setdefault("include_log_monitor", False)
        create(self, *args, **kwargs)

    parameter.RayParams.__init__ = with_what_init_has_no_argument_for
    context = ray.init(
        address="local",
        num_cpus=options["cpus"],
        num_gpus=options["gpus"],
        resources=options["custom"],
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=options["dashboard_port"],
        namespace="servepipe",
        log_to_driver=False,
        _temp_dir=options["folder"],
    )
    info = context.address_info
    return {"address": info["gcs_address"], "dashboard": f"http://{info['webui_url']}", "session": info["session_dir"]}


def _capacity() -> dict[str, Any]:
    import ray

    try:
        return {"total": ray.cluster_resources(), "available": ray.available_resources()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _end_everything(code: int) -> None:
    grace_s = GRACE_S if code == 0 else 0.5
    # The GCS goes last: everybody else tells it that they leave, and without it they wait until they are killed.
    end([p for p in descendants(os.getpid()) if not _is_gcs(p)], grace_s=grace_s)
    end(descendants(os.getpid()), grace_s=grace_s)
    os._exit(code)


def _is_gcs(process: Process) -> bool:
    try:
        return psutil.Process(process.pid).name() == "gcs_server"
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()

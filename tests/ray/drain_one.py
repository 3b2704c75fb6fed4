"""The hook `servepipe.runtime.drain` for one of several Rays on this machine: it sees what a container would show it.

python drain_one.py PID ARGUMENTS: of the ``ray start`` that is below its own process 1; what it says goes to stdout.
"""

from __future__ import annotations

import sys

from servepipe.runtime import drain

starter = int(sys.argv[1])
everything = drain.processes


def of_this_node() -> list[drain.Process]:
    found = everything()
    inside, before = {starter}, 0
    while len(inside) > before:
        before = len(inside)
        inside |= {one.pid for one in found if one.parent in inside}
    return [one for one in found if one.pid in inside]


drain.processes = of_this_node
drain._say = lambda keepers, text: print(text, flush=True)
sys.exit(drain.main(sys.argv[2:]))

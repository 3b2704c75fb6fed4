"""Where this machine's cluster has its files: one place, so that a run finds what a killed one left and takes it down.

There can be one such cluster on a machine anyway: its network and control groups have fixed names.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine.layout import MachineError

#: Root's own, on a disk, and short: the paths of Unix sockets are.
PLACE = Path("/var/lib/servepipe-e2e")


@contextmanager
def held(place: Path = PLACE) -> Iterator[Path]:
    """The folder for the cluster, which is no other run's until the end of the block, however that comes.

    Raises MachineError where another run has it.
    """
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError(
                f"another run has the cluster of this machine, in {place}; wait until it has ended"
            ) from None
        yield place / "c"
    finally:
        os.close(folder)

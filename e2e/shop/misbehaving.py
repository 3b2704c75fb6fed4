"""A model that does to its pod what the request says."""

import os
import tempfile
from pathlib import Path

MEBIBYTE = 1024 * 1024


class Misbehaving:
    def __init__(self):
        self.kept = []

    def act(self, order):
        what = order["do"]
        if what == "exit":
            os._exit(1)
        if what == "eat memory":
            while True:
                self.kept.append(bytearray(os.urandom(MEBIBYTE)) * 16)
        if what == "fill the disk":
            with Path(tempfile.gettempdir(), "full").open("wb", buffering=0) as file:
                try:
                    for _ in range(order["mebibytes"]):
                        file.write(b"x" * MEBIBYTE)
                except OSError as error:
                    return error.strerror
        return "nothing"

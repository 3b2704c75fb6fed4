"""What the tests of the runtime deploy as user code."""

import os


class Model:
    def __init__(self, val):
        self.val = val

    def forward(self, x):
        return self.val * x

    async def pid(self, x):
        return os.getpid()


def ensemble(a, b, c):
    return a + b + c

"""The classes and functions of the diamond, plain Python: no framework, nothing to mock in a test."""


class Model:
    def __init__(self, val):
        self.val = val

    def forward(self, x):
        return self.val * x


def ensemble(a, b, c):
    return a + b + c

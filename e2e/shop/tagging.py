"""A model whose answer says which version of it answered."""

WORD = "one"


class Tagger:
    def __init__(self, word):
        self.word = word

    def tag(self, order):
        return f"{self.word} {WORD}"

"""Whether a text is friendly: VADER's rules and its lexicon of English words, with a few words of other languages."""

from typing import Any

CLEAR_FROM = 0.05
"""A text whose score is at least this far from 0 is positive or negative, otherwise neutral: VADER's own threshold."""

OTHER_LANGUAGES = {
    # How strongly a word speaks for or against, -4 to 4, as in VADER's lexicon.
    "de": {"dankbar": 2.3, "großartig": 3.1, "freundlich": 2.2, "kaputt": -2.3, "enttäuscht": -2.4},
    "fr": {"merveilleux": 3.0, "parfait": 2.7, "merci": 1.9, "terrible": -2.1, "déçu": -2.3, "cassé": -1.9},
    "es": {"excelente": 3.1, "gracias": 1.9, "amable": 2.2, "horrible": -2.5, "roto": -1.9, "decepcionado": -2.3},
    "it": {"ottimo": 3.0, "grazie": 1.9, "gentile": 2.2, "pessimo": -2.8, "rotto": -1.9, "deluso": -2.3},
    "nl": {"geweldig": 3.1, "bedankt": 1.9, "vriendelijk": 2.2, "kapot": -2.1, "teleurgesteld": -2.3},
}


class Sentiment:
    """Rates a text."""

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()
        for words in OTHER_LANGUAGES.values():
            # English comes first where two languages share a word ("terrible").
            self._analyzer.lexicon = words | self._analyzer.lexicon

    def rate(self, text: str) -> dict[str, Any]:
        """`{"label": "positive" | "neutral" | "negative", "score": -1.0 to 1.0}`."""
        score = self._analyzer.polarity_scores(text)["compound"]
        if score >= CLEAR_FROM:
            label = "positive"
        elif score <= -CLEAR_FROM:
            label = "negative"
        else:
            label = "neutral"
        return {"label": label, "score": score}

"""What `servepipe call` prints of an answer."""

from __future__ import annotations

import pytest

from servepipe_operator.bodies import show_answer

NO_ROUTE = b"Path '/' not found. Ping http://.../-/routes for available routes."


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, NO_ROUTE, "HTTP 404: the ingress does not run yet; see `servepipe status`"),
        (404, b"no such order", "HTTP 404"),
        (503, b"not ready", "HTTP 503"),
    ],
)
def test_what_is_no_answer_of_the_graph(
    capsys: pytest.CaptureFixture[str], status: int, body: bytes, told: str
) -> None:
    assert show_answer(status, "text/plain", body) == 1
    assert capsys.readouterr().err.splitlines() == [body.decode(), told]


def test_an_answer_is_printed_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_answer(200, "application/json", b"8") == 0
    assert capsys.readouterr() == ("8\n", "")

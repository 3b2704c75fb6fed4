"""Reading responses piece by piece, and telling right answers from wrong ones."""

from __future__ import annotations

import pytest
from graphbench.cases import Request
from graphbench.responses import Answers, BadResponseError, Response, includes, parse, request_bytes

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n[1,2]"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2;x=y\r\n2]\r\n0\r\n\r\n"


@pytest.mark.parametrize("wire", [PLAIN, CHUNKED], ids=["length", "chunked"])
def test_a_response_is_there_when_its_last_byte_is(wire: bytes) -> None:
    for cut in range(len(wire)):
        assert parse(wire[:cut]) is None, wire[:cut]
    assert parse(wire) == Response(200, b"[1,2]", len(wire), False)
    assert parse(bytearray(wire + b"HTTP/1.1 500")) == Response(200, b"[1,2]", len(wire), False)


def test_a_length_at_the_end_of_the_head() -> None:
    assert parse(b"HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n") == Response(503, b"", 59, True)


@pytest.mark.parametrize("wire", [b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_what_never_becomes_a_response(wire: bytes) -> None:
    with pytest.raises(BadResponseError):
        parse(wire)


def test_a_request_on_the_wire() -> None:
    assert request_bytes("127.0.0.1:8000", "/x", b"[1]") == (
        b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:8000\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n[1]"
    )


def test_an_answer_is_compared_as_json() -> None:
    answers = Answers(Request(b"[1]", {"a": [1, 2]}))
    assert answers.problem(200, b'{"a": [1, 2]}') == ""
    assert answers.problem(200, b'{"a":[1,2]}') == ""
    assert "instead of" in answers.problem(200, b'{"a":[1,3]}')
    assert "instead of" in answers.problem(200, b'{"a":[1,2],"b":0}')
    assert "not JSON" in answers.problem(200, b"<html>")
    assert answers.problem(500, b'{"a":[1,2]}').startswith("HTTP 500")


def test_what_was_right_once_is_right_only_with_that_status() -> None:
    answers = Answers(Request(b"[1]", 8))
    assert answers.problem(200, b"8") == ""
    assert answers.problem(200, b"8") == ""
    assert answers.problem(503, b"8") != ""
    assert answers.problem(200, b"9") != ""


def test_the_no_op_has_its_own_answer() -> None:
    request = Request(b"[1,2,3]", 8, noop=3)
    assert Answers(request, noop=True).problem(200, b"3") == ""
    assert Answers(request, noop=True).problem(200, b"8") != ""
    assert Answers(request).problem(200, b"3") != ""


def test_partly_means_at_least_these_fields() -> None:
    answers = Answers(Request(b"", {"language": {"code": "de"}}, partly=True))
    assert answers.problem(200, b'{"language": {"code": "de", "sure": 0.9}, "text": "x"}') == ""
    assert answers.problem(200, b'{"language": {"code": "en"}}') != ""
    assert answers.problem(200, b'{"text": "x"}') != ""
    assert not includes([1], {"a": 1})

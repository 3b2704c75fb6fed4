"""Proofs prove one connection, in one direction, with one token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe.channel.errors import ProtocolError
from servepipe.channel.handshake import (
    NONCE_BYTES,
    Hello,
    client_proof,
    encode_welcome,
    is_proof,
    new_hello,
    new_nonce,
    parse_challenge,
    parse_welcome,
    server_proof,
)

TOKEN = b"t" * 32
HELLO = Hello(b"c" * NONCE_BYTES, 1000, "m1--6f3a91c2", "replica")
NONCE = b"s" * NONCE_BYTES


@given(
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.integers(0, 2**64 - 1),
)
def test_hello_arrives_as_it_was(application, replica, limit):
    hello = new_hello(application, replica, limit)
    assert Hello.parse(hello.encode()) == hello


@settings(max_examples=2000)
@given(st.binary(max_size=120))
def test_garbage_is_no_hello(data):
    try:
        hello = Hello.parse(data)
    except ProtocolError:
        return
    assert hello.encode() == data


def test_names_have_an_end():
    with pytest.raises(ValueError, match="at most 1000"):
        new_hello("a" * 1001, "r", 1).encode()


@pytest.mark.parametrize(
    ("token", "hello", "nonce"),
    [
        (b"u" * 32, HELLO, NONCE),
        (TOKEN, replace(HELLO, nonce=b"d" * NONCE_BYTES), NONCE),
        (TOKEN, replace(HELLO, application="m1--77aa01bc"), NONCE),
        (TOKEN, replace(HELLO, replica="other"), NONCE),
        (TOKEN, replace(HELLO, max_frame_bytes=1001), NONCE),
        (TOKEN, replace(HELLO, application="m1--6f3a91c2r", replica="eplica"), NONCE),
        (TOKEN, HELLO, b"z" * NONCE_BYTES),
    ],
)
def test_whatever_differs_makes_another_proof(token, hello, nonce):
    assert not is_proof(server_proof(token, hello, nonce), server_proof(TOKEN, HELLO, NONCE))
    assert not is_proof(client_proof(token, hello, nonce), client_proof(TOKEN, HELLO, NONCE))


def test_a_proof_cannot_be_sent_back():
    assert not is_proof(server_proof(TOKEN, HELLO, NONCE), client_proof(TOKEN, HELLO, NONCE))


def test_equal_ones_are_equal():
    assert is_proof(memoryview(server_proof(TOKEN, HELLO, NONCE)), server_proof(TOKEN, HELLO, NONCE))


def test_nonces_differ():
    assert len({new_nonce() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("head", [b"", b"x" * 63, b"x" * 65])
def test_a_challenge_has_its_size(head):
    with pytest.raises(ProtocolError):
        parse_challenge(head)


def test_limits_arrive():
    assert parse_welcome(encode_welcome(7, 1 << 40)) == (7, 1 << 40)
    with pytest.raises(ProtocolError):
        parse_welcome(b"x")

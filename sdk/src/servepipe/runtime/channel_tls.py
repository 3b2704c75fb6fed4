"""TLS for channels between machines, with Ray's own certificates where the cluster has them for its connections."""

from __future__ import annotations

import os
import ssl

from servepipe.channel.errors import ChannelError

__all__ = ["client_context", "server_context"]


def server_context() -> ssl.SSLContext | None:
    """For those who listen; clients need a certificate too. None: this cluster has no TLS.

    Raises:
        ChannelError: Ray's variables do not name all files.
        OSError: A file cannot be read.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER)


def client_context() -> ssl.SSLContext | None:
    """For those who connect."""
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def _context(protocol: int) -> ssl.SSLContext | None:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.SSLContext(protocol)
    # Ray's certificates name no addresses of pods: what counts is who signed them, and then the token.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
        context.load_verify_locations(os.environ["RAY_TLS_CA_CERT"])
    except KeyError as error:
        raise ChannelError(f"RAY_USE_TLS is set, but {error.args[0]} is not") from None
    return context

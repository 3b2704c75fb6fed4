"""What the host's pip knows of an index and of a certificate, as secrets of a build."""

import ast
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

#: What says where packages come from and how they are reached.
PASSED = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "timeout", "retries")
#: Where a build step finds the certificates, as the Dockerfile says.
CERTIFICATES = "/run/secrets/ca.crt"
#: Variables by which certificates are named to pip, the first that is set counts.
_NAMED_BY = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def parse(listed: str) -> dict[str, str]:
    """The settings in the output of `pip config list`, whichever command they are for; later lines win, as with pip."""
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, separator, value = line.partition("=")
        if separator and value[:1] in "'\"":
            found[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return found


def configuration(settings: Mapping[str, str], certificates: str | None) -> str:
    """A pip.conf for build steps; empty where there is nothing to say."""
    lines = [f"{name} = {' '.join(settings[name].split())}" for name in PASSED if name in settings]
    if certificates:
        lines.append(f"cert = {CERTIFICATES}")
    return "\n".join(["[global]", *lines, ""]) if lines else ""


def certificates(settings: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """The file with the authorities that pip trusts, where it is not pip's own."""
    named = [settings.get("cert"), *(environ.get(name) for name in _NAMED_BY)]
    return next((path for path in named if path), None)


@contextlib.contextmanager
def secrets(environ: Mapping[str, str] = os.environ) -> Iterator[dict[str, Path]]:
    """The secrets `pip.conf` and `ca.crt` of the Dockerfiles, in a folder that only this user reads, for as long."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], env=dict(environ), capture_output=True, text=True
    )
    settings = parse(done.stdout) if done.returncode == 0 else {}
    trusted = certificates(settings, environ)
    text = configuration(settings, trusted)
    with tempfile.TemporaryDirectory(prefix="servepipe-build-") as folder:
        found: dict[str, Path] = {}
        if text:
            found["pip.conf"] = Path(folder) / "pip.conf"
            found["pip.conf"].write_text(text)
        if trusted:
            found["ca.crt"] = Path(trusted)
        yield found

"""The small steps between the models, and what the caller gets.

They run in the ingress, and they are in a module of their own for that reason: a node's code is its module together
with what that imports. Next to the models, or in the module that builds the graph, they would change with every model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request


async def body_of(request: Request) -> bytes:
    """The graph's input: the body as it came, whatever its content type claims."""
    return await request.body()


def plain_text(body: bytes) -> str:
    """The text of a text file: UTF-8 with or without a mark, else the Western encoding that old systems write."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return body.decode("cp1252", errors="replace")


def page_text(lines: list[str]) -> str:
    """The text of a page: the lines that could be read."""
    return "\n".join(line for line in lines if line)


def report(found: dict[str, Any], text: str, language: dict[str, Any], sentiment: dict[str, Any]) -> dict[str, Any]:
    """The answer for a document that was read."""
    return {"accepted": True, "type": found["type"], "text": text, "language": language, "sentiment": sentiment}


def refuse(found: dict[str, Any]) -> dict[str, Any]:
    """The answer for a file that is turned away, with the reason."""
    if found["kind"] == "image":
        reason = f"the {found['description']} cannot be read: send it again, as PNG or JPEG"
    elif found["type"] == "empty":
        reason = "the file is empty"
    elif found["type"] == "unknown":
        reason = "neither an image nor a text: nothing in it can be recognised"
    else:
        reason = f"{found['description']} is neither an image nor a text: send the document itself"
    return {"accepted": False, "type": found["type"], "reason": reason}

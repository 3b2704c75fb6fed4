"""What kind of file the caller sent: magika's model reads the bytes, never a file name."""

from typing import Any


class FileType:
    """Names the type of a file and the way it goes through the pipeline.

    The import waits for the constructor, here and in the other models: compiling the graph needs none of the packages.
    """

    def __init__(self) -> None:
        from magika import Magika

        self._magika = Magika()

    def identify(self, body: bytes) -> dict[str, Any]:
        """`{"kind": "image" | "text" | "other", "type": "png", "description": "PNG image"}` of the file's bytes.

        Text is what is written for people: programs and configuration files are text for magika too, but `other` here.
        """
        found = self._magika.identify_bytes(body).output
        kind = found.group if found.group in ("image", "text") else "other"
        return {"kind": kind, "type": str(found.label), "description": found.description}

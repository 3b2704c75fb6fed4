"""Reading a page: the three models of RapidOCR, each a node of its own.

`TextDetection` finds the lines of text, `Orientation` turns those that stand on their head, `Recognition` reads one.
Between the nodes travel numpy arrays (height, width, 3; blue, green, red). Every model runs on one thread: with a
thread per core in each of several processes, they would only wait for one another.
"""

from __future__ import annotations

import io
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Image = np.ndarray[Any, np.dtype[np.uint8]]

ROW_HEIGHT = 10
"""Boxes whose tops are less than this many pixels apart stand in one row, as in RapidOCR itself."""


class TextDetection:
    """Finds the lines of text in an image.

    Args:
        short_side: pixels to which the image's shorter side is enlarged before the search; more finds smaller print
            and takes longer.
        box_score: how sure the model must be of a line, 0 to 1.
    """

    def __init__(self, short_side: int = 736, box_score: float = 0.5) -> None:
        config = _config("Det") | {"limit_side_len": short_side, "box_thresh": box_score}

        from rapidocr_onnxruntime.ch_ppocr_det import TextDetector

        self._detector = TextDetector(config)

    def find(self, body: bytes) -> dict[str, Any]:
        """`{"readable": bool, "lines": [Image, ...]}` of an image file, from top to bottom and left to right.

        `readable` is False for a file that only starts like an image: cut short, damaged, of a kind that Pillow lacks.
        """
        image = _decoded(body)
        if image is None:
            return {"readable": False, "lines": []}
        boxes, _ = self._detector(image)
        return {"readable": True, "lines": [_cut_out(image, box) for box in _in_reading_order(boxes)]}


class Orientation:
    """Turns lines that stand on their head."""

    def __init__(self) -> None:
        config = _config("Cls")

        from rapidocr_onnxruntime.ch_ppocr_cls import TextClassifier

        self._classifier = TextClassifier(config)

    def upright(self, lines: list[Image]) -> list[Image]:
        """The same lines, all upright."""
        turned, _, _ = self._classifier(lines)
        return turned


class Recognition:
    """Reads one line.

    Args:
        least_score: a line that is read with less confidence (0 to 1) counts as empty.
    """

    def __init__(self, least_score: float = 0.5) -> None:
        config = _config("Rec")

        from rapidocr_onnxruntime.ch_ppocr_rec import TextRecognizer

        self._recognizer = TextRecognizer(config)
        self._least_score = least_score

    def read(self, line: Image) -> str:
        """The text of the line."""
        [(text, score)], _ = self._recognizer([line])
        return text if score >= self._least_score else ""


def _config(part: str) -> dict[str, Any]:
    """RapidOCR's own settings of one of its models, on one thread.

    Raises:
        ImportError: the package is not installed, with what to do about it.
    """
    try:
        import rapidocr_onnxruntime
    except ImportError as error:
        raise ImportError(
            "rapidocr-onnxruntime is needed to read images: pip install 'rapidocr-onnxruntime>=1.4' "
            f"with Python 3.11 or 3.12 (it has no release for 3.13; this is {platform.python_version()})"
        ) from error
    import yaml

    folder = Path(rapidocr_onnxruntime.__file__).parent
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))[part]
    return settings | {
        "model_path": str(folder / settings["model_path"]),
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
    }


def _decoded(body: bytes) -> Image | None:
    """The pixels of an image file as they are meant to be seen, upright and on white paper; None where it has none."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGBA")
    except Exception:  # OSError, SyntaxError, ValueError and more: whatever the decoder of that format stumbled over
        return None
    paper = Image.new("RGBA", image.size, "white")
    seen = Image.alpha_composite(paper, image).convert("RGB")
    return np.ascontiguousarray(np.asarray(seen)[:, :, ::-1])


def _in_reading_order(boxes: Any) -> list[Any]:
    """The boxes (four corners each, clockwise from the top left) row by row."""
    if boxes is None:
        return []
    rows: list[list[Any]] = []
    for box in sorted(boxes, key=lambda corners: corners[0][1]):
        if rows and box[0][1] - rows[-1][-1][0][1] < ROW_HEIGHT:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda corners: corners[0][0])]


def _cut_out(image: Image, corners: Any) -> Image:
    """The line inside the four corners, straightened; one that is much taller than wide is laid down."""
    import cv2
    import numpy as np

    top_left, top_right, bottom_right, bottom_left = corners = np.asarray(corners, dtype=np.float32)
    width = int(max(np.linalg.norm(top_left - top_right), np.linalg.norm(bottom_right - bottom_left)))
    height = int(max(np.linalg.norm(top_left - bottom_left), np.linalg.norm(top_right - bottom_right)))
    target = np.asarray([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    straight = cv2.warpPerspective(
        image,
        cv2.getPerspectiveTransform(corners, target),
        (width, height),
        borderMode=cv2.BORDER_REPLICATE,
        flags=cv2.INTER_CUBIC,
    )
    return np.ascontiguousarray(np.rot90(straight)) if height >= 1.5 * width else straight

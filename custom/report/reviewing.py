"""The page on which predictions are looked at, the worst first."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ..utils.files import FILE_NAMES
from ..utils.tables import Row
from .drawing import structure_colors
from .pages import write_page

#: Of the pictures within the page, so that one of a thousand scans has about 40 MB.
JPEG_QUALITY = 80


def review_page(
    folder: Path,
    rows: Sequence[Row],
    pictures: Mapping[str, Path],
    structures: Sequence[str],
    problems: Sequence[str] = (),
) -> Path:
    """Write ``review.html``, which needs no other file.

    Args:
        folder: a folder of predictions.
        rows: of the scans, in their order, see :func:`custom.report.ranking.review_order`, with ``prediction``, the
            path of the label map below the folder.
        pictures: files by case, which are shown where they are.
        structures: names of the classes that are drawn, in the order of their labels.
        problems: why scans were left out, a text each.

    Returns:
        The page.
    """
    shown = [{**row, "picture": _picture(pictures[row["case"]]), "link": _link(row["prediction"])} for row in rows]
    reasons = sorted({reason for row in rows for reason in row["why"].split("; ") if reason})
    content = {"name": f"Review of {folder.name}", "rows": shown, "reasons": reasons, "problems": problems}
    content["colors"] = structure_colors(structures)
    return write_page(folder / "review.html", content)


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture, BytesIO() as packed:
        picture.convert("RGB").save(packed, "JPEG", quality=JPEG_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


def _link(path: str) -> str:
    """Write a relative path as an address; names that are no Unicode keep their bytes."""
    return quote(path.encode("utf-8", FILE_NAMES))

"""The page on which predictions are looked at, the worst first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..utils.tables import Row
from .pages import write_page

__all__ = ["review_page"]

#: Of the pictures within the page, so that one of a thousand scans has about 40 MB.
JPEG_QUALITY = 80


def review_page(folder: Path, rows: Sequence[Row]) -> Path:
    """Write ``review.html``, which needs no other file.

    Args:
        folder: a folder of predictions, whose ``review/CASE.png`` are shown where there are some.
        rows: of the scans, in their order, see :func:`custom.report.ranking.review_order`.

    Returns:
        The page.
    """
    shown = [{**row, "picture": _picture(folder / "review" / f"{row['case']}.png")} for row in rows]
    reasons = sorted({reason for row in rows for reason in row["why"].split("; ") if reason})
    return write_page(folder / "review.html", {"name": f"Review of {folder.name}", "rows": shown, "reasons": reasons})


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture, BytesIO() as packed:
        picture.convert("RGB").save(packed, "JPEG", quality=JPEG_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()

"""Tables as CSV files and as text."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import FILE_NAMES, atomic_write

#: Texts and numbers by column.
Row = dict[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, whose columns may differ, with four decimals; the file is replaced when all are written."""
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8", errors=FILE_NAMES) as file:
        writer = csv.DictWriter(file, _columns(rows))
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def format_table(rows: Sequence[Row]) -> str:
    """Align rows, whose columns may differ, for a terminal."""
    columns = _columns(rows)
    values = [[row.get(column, "") for column in columns] for row in rows]
    cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in line] for line in values]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [columns, *cells]
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))

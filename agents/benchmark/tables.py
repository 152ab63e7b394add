"""Write results as the Markdown tables that the documentation shows."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, padded so that it reads well in a terminal too.

    Args:
        header: Column names; the first column is aligned left, the others right.
        rows: One sequence per row, as long as the header. Floats keep three significant digits.
    """
    cells = [[_as_text(value) for value in row] for row in rows]
    widths = [
        max(len(name), *(len(row[column]) for row in cells), 3) if cells else max(len(name), 3)
        for column, name in enumerate(header)
    ]
    lines = [_line(header, widths), "|" + "|".join(_rule(x, w) for x, w in enumerate(widths)) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in cells])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _rule(column: int, width: int) -> str:
    return "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"


def _as_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

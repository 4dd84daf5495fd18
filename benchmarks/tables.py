"""Cells and tables, as text or as Markdown."""

from collections.abc import Collection, Sequence

Row = tuple[str, ...]


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def microseconds(value: float | None) -> str:
    return number(value, 1 if value is None or abs(value) >= 10.0 else 2)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.0f}%"


def table(columns: Row, rows: Sequence[Row], text_columns: Collection[str], markdown: bool) -> list[str]:
    """Lines. `text_columns` are flushed left, the others right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    is_text = [column in text_columns for column in columns]

    def line(cells: Row) -> str:
        padded = [
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(cells, widths, is_text, strict=True)
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = tuple(
        "-" * width if text or not markdown else "-" * (width - 1) + ":"
        for width, text in zip(widths, is_text, strict=True)
    )
    return [line(columns), line(rule), *map(line, rows)]

"""Labelled lines and small tables, as text and as HTML: what reports are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Section:
    """Lines with a label each, under a heading; then, if there are any, rows of a table with their head.

    Attributes:
        heading: of the section.
        lines: (label, text) pairs; a text may have several lines.
        table: rows of cells, the first one the head.
    """

    heading: str
    lines: tuple[tuple[str, str], ...]
    table: tuple[tuple[str, ...], ...] = ()


def as_text(title: str, sections: Sequence[Section]) -> str:
    """Plain text, labels in one column."""
    width = max((len(label) for section in sections for label, _ in section.lines), default=0)
    out = [title]
    for section in sections:
        out += ["", section.heading]
        for label, text in section.lines:
            first, *others = text.splitlines() or [""]
            out.append(f"  {label:<{width}}  {first}".rstrip())
            out += [f"  {'':<{width}}  {line}" for line in others]
        out += [f"  {line}" for line in columns(section.table)]
    return "\n".join(out)


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines in which the cells of a column end below each other."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))] if table else []
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]


def as_html(title: str, sections: Sequence[Section]) -> str:
    """For notebooks: one table, its text escaped, in the colours of whatever shows it."""
    rows = [f'<tr><th colspan="2" style="text-align:left">{escape(title)}</th></tr>']
    for section in sections:
        rows.append(f'<tr><th colspan="2" style="text-align:left;padding-top:.8em">{escape(section.heading)}</th></tr>')
        for label, text in section.lines:
            lines = "<br>".join(escape(line) for line in text.splitlines())
            rows.append(f"<tr>{_cell(escape(label))}{_cell(lines)}</tr>")
        if section.table:
            rows.append(f'<tr><td colspan="2">{_inner(section.table)}</td></tr>')
    return f'<table class="convexlayers-report">{"".join(rows)}</table>'


def _cell(content: str) -> str:
    return f'<td style="text-align:left;vertical-align:top">{content}</td>'


def _inner(table: Sequence[Sequence[str]]) -> str:
    head, *body = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in _tagged(table)]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def _tagged(table: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [("td" if k else "th", row) for k, row in enumerate(table)]


def byte_size(count: float) -> str:
    """312 B, 1.2 kB, 34 MB; k and M are powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"

"""What people read: tables on the terminal, and the library that figures are drawn with."""

import json
import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synthnet.errors import missing_extra, one_line


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print one table on standard output; the first column is text, the others figures."""
    made = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left")
    for row in rows:
        made.add_row(*(escape(one_line(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a pipe or a file has no width of its own
    console.print(made)


def as_json(value: object, indent: int | None = None) -> str:
    """JSON as the standard has it: a number that is not finite is null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent)


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def accuracy_row(name: str, stats: dict, *more: str) -> list[str]:
    return [name, f"{percent(stats['mean'])} ± {100 * stats['sd']:.2f}", percent(stats["min"]), percent(stats["max"]), *more]


def figure_library():
    """matplotlib and its pyplot, without a display. Raises: InputError where it is missing."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    return mpl, plt

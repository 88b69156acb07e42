"""The table of every setting: its type, its default, whether a live run can change it, and within which bounds."""

import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass

from synthnet.config import GROUPS, Config, plugins
from synthnet.runs.knobs import HOT, LIVE_SECTIONS

COLUMNS = ["setting", "type", "default", "live", "bounds or choices"]


def knob_rows() -> tuple[list[str], list[list[str]]]:
    """Columns and rows, in the order of the configuration; plug-ins of a group follow one another."""
    rows = [row for name in ("task", "tokens", "backbone") for row in _plugin_rows(name)]
    for group, kind in {"action": Config.__dataclass_fields__["action"].default_factory, **GROUPS}.items():
        rows += list(_rows(group, kind))
    plain = [each for each in fields(Config) if each.name not in {*GROUPS, "action", "task", "tokens", "backbone"}]
    rows += [_row(each.name, each.type, _default(each)) for each in plain]
    return COLUMNS, rows


def _plugin_rows(group: str) -> list[list[str]]:
    """The settings of all options of a group; of one that several have, the first's default."""
    rows: dict[str, list[str]] = {}
    for kind in plugins(group).values():
        for row in _rows(group, kind):
            if row[0] != f"{group}.name":
                rows.setdefault(row[0], row)
    return list(rows.values())


def _rows(prefix: str, kind: type, made: object = None) -> Iterator[list[str]]:
    hints = typing.get_type_hints(kind)
    for each in fields(kind):
        hint, default = hints[each.name], getattr(made, each.name) if made else _default(each)
        if is_dataclass(hint):
            yield from _rows(f"{prefix}.{each.name}", hint, default)
        else:
            yield _row(f"{prefix}.{each.name}", hint, default)


def _row(name: str, hint: object, default: object) -> list[str]:
    kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    kind = kind.replace("synthnet.lab.", "").replace("|", "or").replace("  ", " ")
    shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    if name not in HOT:
        return [name, kind, shown, "cold", ""]
    limit = HOT[name]
    if isinstance(limit, tuple):
        bounds = ", ".join("null" if choice is None else str(choice) for choice in limit)
    else:
        bounds = "true, false" if limit is None else str(limit)
    group = name.partition(".")[0]
    stages = [stage for stage, sections in LIVE_SECTIONS.items() if group in sections]
    return [name, kind, shown, f"hot: {', '.join(stages)}", bounds]


def _default(each) -> object:
    return each.default_factory() if each.default_factory is not MISSING else each.default

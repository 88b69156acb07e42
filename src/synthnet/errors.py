"""The one error that means 'your input or settings', never a fault of ours: the command line turns it into exit code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input or bad settings. The message says what was expected, what came, and what to do."""


LONGEST_MESSAGE = 1200


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """A text on one line, without what a terminal would act upon: names and metadata of a file may hold anything."""
    shown = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    if len(shown) <= longest:
        return shown
    return f"{shown[: longest // 2]} … {shown[-longest // 2 :]} ({len(text):,} characters)"


def said(error: BaseException) -> str:
    """What an error says, on one line and not at length; one of a user's own may fail to say anything."""
    try:
        return " ".join(str(error).split())[:200]
    except Exception:
        return "it cannot say what is wrong"


def missing_extra(package: str, extra: str) -> InputError:
    """The error for an optional dependency that is not installed."""
    hint = f"pip install 'synthnet[{extra}]' (in a clone: '.[{extra}]')"
    return InputError(f"this needs {package}, which is not installed: {hint}")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that nothing answers to, with the nearest names that something does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")

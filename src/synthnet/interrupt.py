"""Ctrl-C at a safe moment: the first one asks long work to stop at its next boundary, the second one stops at once."""

import signal
import threading


class StopRequest:
    """As a context manager, turns SIGINT and SIGTERM into the flag `asked`. Outside the main thread it never asks."""

    def __init__(self):
        self.asked = False
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._ask) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

"""The control plane: a page on this machine to watch, patch, stop, fork and compare runs."""

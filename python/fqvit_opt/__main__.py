"""The command line program: ``fqvit-opt``, or ``python -m fqvit_opt``."""

from __future__ import annotations

import sys

from . import _native


def main() -> int:
    """Runs the program on this process's arguments; returns its exit status."""
    return _native.command(["fqvit-opt", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

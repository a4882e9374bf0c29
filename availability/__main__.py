"""`python -m availability` is the command `availability`."""

from __future__ import annotations

import sys

from availability.cli import main

if __name__ == "__main__":
    sys.exit(main())

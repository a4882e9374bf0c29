"""A worker process; the parent (`app`) starts it and tells it what to do."""

import sys

from availability.workers.app import work

if __name__ == "__main__":
    sys.exit(work())

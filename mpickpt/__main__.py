"""``python -m mpickpt`` is ``mpickpt``."""

import sys

from mpickpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

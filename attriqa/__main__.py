"""``python -m attriqa``: the ``attriqa`` command."""

import sys

from attriqa.cli import main

if __name__ == "__main__":
    sys.exit(main())

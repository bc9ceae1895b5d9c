"""`python -m rela_cli` is `rela`."""

import sys

from rela_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m cluster …``: the same as the command ``ontogeny``."""

import sys

from cluster.cli import main

if __name__ == "__main__":
    sys.exit(main())

# PYTHON_ARGCOMPLETE_OK
"""The command ``ontogeny``, and ``python -m ontogeny …``."""

import sys

from ontogeny.packages import load_packages


def main() -> int:
    """Run the command line; returns its exit code (2 for a request that cannot be carried out)."""
    try:
        load_packages()
    except ImportError as error:
        print(f"ontogeny: {error}", file=sys.stderr)
        return 2
    from cluster.cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())

"""Where the checkout is, for tests that read its files or start processes of their own."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDERS = ("project", "runs", "loops", "ranks", "servers", "reference")
SUPPORT = [ROOT / "tests" / "support" / name for name in FOLDERS]
IMPORT_PATH = os.pathsep.join(map(str, [ROOT, *SUPPORT]))
"""PYTHONPATH for a process that imports the product and the tests' support modules."""

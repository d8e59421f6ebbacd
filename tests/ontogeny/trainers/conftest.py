"""Where the trainers' tests put their runs."""

from pathlib import Path

import pytest


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The URI of a run in memory that no other test uses."""
    return f"memory://{tmp_path.name}"

"""``docker/demo.sh`` with a fake docker: its secrets, and the report that it copies."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from docker_files import DOCKER, SECRETS

DOCKER_THAT_COPIES = """\
#!/bin/sh
echo "docker $*"
[ "$4" = cp ] || exit 0
to=$6
[ -d "$to" ] && to=$to/${5##*/}
mkdir -p "$to"
echo "$PAGE" > "$to/index.html"
"""
"""Prints its arguments; copies a folder as docker does: into an existing one, else as a new one."""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """A function that runs the script with a fake docker, whose report is a given page."""
    for name in ("demo.sh", "compose.yaml"):
        shutil.copy(DOCKER / name, tmp_path)
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(DOCKER_THAT_COPIES)
    fake.chmod(0o755)

    def run(page: str = "") -> str:
        given = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PAGE": page}
        done = subprocess.run(
            [tmp_path / "demo.sh"], env=given, capture_output=True, text=True, check=True
        )
        return done.stdout

    return run


def test_the_script_makes_secrets_once_readable_by_the_owner_only(
    script: Callable[..., str], tmp_path: Path
) -> None:
    assert "--exit-code-from demo\n" in script()
    secrets = tmp_path / ".env"
    first = secrets.read_text()
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    made = dict(line.split("=") for line in first.splitlines() if not line.startswith("#"))
    assert {name: len(value) for name, value in made.items()} == {
        k: len(v) for k, v in SECRETS.items()
    }
    script()
    assert secrets.read_text() == first
    secrets.unlink()
    script()
    assert secrets.read_text() != first


def test_the_script_leaves_the_report_of_the_last_run(
    script: Callable[..., str], tmp_path: Path
) -> None:
    for page in ("first", "second"):
        said = script(page)
        shown = Path(said.splitlines()[-1].removeprefix("The report: "))
        assert shown == tmp_path / "report" / "index.html"
        assert shown.read_text() == f"{page}\n"
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]

"""The wheel and the sdist, installed in a fresh environment away from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT

import ontogeny

pytestmark = [pytest.mark.slow, pytest.mark.package, pytest.mark.timeout(1500)]
SHORT = ["training.epochs=1", "capture.outliers.k=100"]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder, with nothing of the checkout or its environment on the path."""
    banned = ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in banned}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of a clean copy of what git tracks."""
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("needs a git checkout: git ls-files")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", target, source, folder=source)
    return target


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a new environment with torch, pinned as in the checkout, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    binaries = folder / "venv" / "bin"
    pip = [binaries / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    run(*pip, "torch", folder=folder)  # first and alone, so that no other build of it is taken
    return binaries


def test_the_distributions_hold_what_is_needed_and_no_tests(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    assert ontogeny.__version__ in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ontogeny/__init__.py", "ontogeny/py.typed", "configs/demo.yaml"} <= names
    assert any(name.endswith(".css") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in names)
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/configs/demo.yaml") for name in archive.getnames())


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_the_demo_runs_away_from_the_checkout(
    built: Path, fresh: Path, tmp_path: Path, kind: str
) -> None:
    (file,) = built.glob(kind)
    pip = [fresh / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    run(*pip, "--force-reinstall", "--no-deps", file, folder=tmp_path)
    run(*pip, file, folder=tmp_path)
    assert run(fresh / "ontogeny", "--version", folder=tmp_path).split()[-1] == ontogeny.__version__
    said = run(fresh / "ontogeny", "capture", "demo", *SHORT, folder=tmp_path)
    assert "every step audited" in said
    code = "import ontogeny as o; o.attribute('runs/demo', save=True); print(o.report('runs/demo'))"
    assert "index.html" in run(fresh / "python", "-c", code, folder=tmp_path)
    assert (tmp_path / "runs/demo/report/index.html").is_file()

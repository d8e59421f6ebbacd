"""The public API: examples that run, names loaded on first use, and user files that clash."""

import doctest
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from tiny_run import SETTINGS

import ontogeny

FUNCTIONS = [
    getattr(ontogeny, name)
    for name in ontogeny.__all__
    if inspect.isfunction(getattr(ontogeny, name))
    and getattr(ontogeny, name).__module__.startswith(("ontogeny.", "capture."))
]
"""Those of ``analysis.run`` have examples of another run, which ``tests/analysis`` runs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A folder with a small run at ``runs/demo``, and the settings that made it."""
    here = tmp_path_factory.mktemp("user")
    ids = np.cumsum(np.random.default_rng(0).choice([1, 2, 5], size=1500)) % 12
    (here / "text.txt").write_text(" ".join(f"w{i}" for i in ids))
    more = ["corpus.validation_share=0.3", "training.epochs=1"]
    small = [*SETTINGS, f"corpus.path={here / 'text.txt'}", *more]
    before = Path.cwd()
    os.chdir(here)
    try:
        ontogeny.attribute(ontogeny.capture("demo", *small, "run.uri=runs/demo"), save=True)
        yield here, small
    finally:
        os.chdir(before)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_the_example_of_each_function_runs(function, folder: tuple[Path, list[str]]) -> None:
    given = {"ontogeny": ontogeny, "small": folder[1]}
    (test,) = doctest.DocTestFinder(recurse=False).find(function, globs=given)
    assert test.examples, "has no example"
    said: list[str] = []
    results = doctest.DocTestRunner().run(test, out=said.append)
    assert results.failed == 0, "".join(said)


@pytest.mark.parametrize("name", ontogeny.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    found = getattr(ontogeny, name)
    text = inspect.getdoc(found) or ""
    assert text, name
    assert not text.startswith(f"{name}("), "a dataclass without a docstring of its own"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ontogeny.nonsense  # noqa: B018
    assert set(ontogeny.__all__) == set(dir(ontogeny))


def python(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py"]
    (folder / "script.py").write_text(code)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_importing_it_imports_nothing_heavy(tmp_path: Path) -> None:
    done = python(
        "import sys, ontogeny; print(len({'torch', 'numpy'} & set(sys.modules)))", tmp_path
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


OPEN = """
import ontogeny
try:
    ontogeny.open_run("nowhere")
except ontogeny.CaptureError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("file", marks=pytest.mark.slow),
        pytest.param("folder", marks=pytest.mark.slow),
        "package",
    ],
)
def test_files_of_the_user_with_the_names_of_packages_are_no_hindrance(
    tmp_path: Path, kind: str
) -> None:
    for name in ("analysis", "capture", "cluster", "configs"):
        if kind == "file":
            (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user ran')\n")
        else:
            (tmp_path / name).mkdir()
        if kind == "package":
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('it ran')\n")
    done = python(OPEN + "print(ontogeny.read_config('demo').run.uri)\n", tmp_path)
    assert "nowhere" in done.stdout, done.stderr
    assert done.stdout.endswith("runs/demo\n"), done.stderr


def test_a_file_of_the_user_that_is_loaded_already_is_named(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("plots = 1\n")
    done = python("import analysis\n" + OPEN, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'analysis.py'} is loaded as 'analysis'"), last
    assert "Rename that file" in last


def test_the_command_names_the_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "capture.py").write_text("")
    code = "import capture, sys\nfrom ontogeny.__main__ import main\nsys.exit(main())\n"
    done = python(code, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ontogeny: {tmp_path / 'capture.py'} is loaded as 'capture'")
    assert len(done.stderr.splitlines()) == 1

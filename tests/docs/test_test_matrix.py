"""Each row of the page on what is tested names a test that exists and a result that fits it."""

import re
from pathlib import Path

import pytest
from checkout import ROOT
from kinds_of_loops import EXACT, REFUSED

import capture.errors

PAGE = (ROOT / "docs" / "reference" / "test-matrix.md").read_text()
ROWS = re.findall(r"^\| .* \| ([^|]+) \| `([^`]+)` \|$", PAGE, flags=re.MULTILINE)
"""Result and test of each row."""


def lines_of(test: str) -> tuple[Path, str, str]:
    """Return the file, the function and the case of a test."""
    found = re.fullmatch(r"([\w/]+\.py)::(\w+)(?:\[(.*)\])?", test)
    assert found, test
    return ROOT / "tests" / found[1], found[2], found[3] or ""


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("test", [test for _, test in ROWS])
def test_the_test_exists(test: str) -> None:
    path, function, case = lines_of(test)
    text = path.read_text()
    assert re.search(rf"^def {function}\(", text, flags=re.MULTILINE)
    if path.name == "test_kinds_of_loops.py":
        assert case in (REFUSED if "refused" in function else EXACT)
    elif case:
        support = (ROOT / "tests" / "support" / "ranks" / "recorded_ranks.py").read_text()
        assert f'"{case}"' in text + support


@pytest.mark.parametrize(("result", "test"), ROWS)
def test_the_result_is_one_that_the_test_shows(result: str, test: str) -> None:
    errors = re.findall(r"`(\w+)`", result)
    if not errors:
        assert result in ("exact", "audited")
        return
    path, function, case = lines_of(test)
    assert "refused" in function or "error" in function
    if case in REFUSED:
        assert REFUSED[case][1].__name__ in errors
    for name in errors:
        assert issubclass(getattr(capture.errors, name), capture.errors.CaptureError)
        assert case in REFUSED or name in path.read_text()

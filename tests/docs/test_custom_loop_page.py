"""The code on the page about custom training loops runs as it is printed."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds_of_loops import EXACT, REFUSED

from cluster.cli import main, parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "custom-loop.md").read_text()


@pytest.fixture(scope="module")
def page_variables(tmp_path_factory) -> dict[str, Any]:
    """Variables after all Python blocks have run in order in an empty folder, and exit codes."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in re.findall(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL):
            exec(block, names)
        names["answers"] = [main(line) for line in commands()]
    return names


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^\$ ontogeny (.*)$", PAGE, re.MULTILINE)]


def test_the_python_blocks_produce_the_run_that_the_page_describes(page_variables):
    steps = page_variables["steps"]
    assert steps["step"].tolist() == list(range(10))
    assert steps["audit_error"].max() < 1e-5
    assert sorted(np.concatenate(steps["datums"][:5].to_numpy())) == list(range(40))
    assert set(page_variables["shifts"]["step"]) == {0, 1, 2}
    assert page_variables["weights"].shape == (32, 16)


def test_the_commands_of_the_page_succeed(page_variables):
    assert len(commands()) == 3
    assert page_variables["answers"] == [0, 0, 0]
    for line in commands():
        parser().parse_args(line)


def test_the_table_of_kinds_has_a_row_for_each_test():
    table = PAGE.partition("## Kinds of loops")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, flags=re.MULTILINE)[1:])
    refused = {
        name: f"`{error.__name__}`: {message}" for name, (_, error, message) in REFUSED.items()
    }
    assert rows == dict.fromkeys(EXACT, "exact") | refused
    assert set(list(rows)[: len(EXACT)]) == set(EXACT)  # those that are exact come first
    assert len(rows) >= 60
    assert f"[{len(rows)} kinds of loops and models]" in (ROOT / "README.md").read_text()

"""The page about loops of one's own can be pasted as it stands."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli import main, parser

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "custom-loop.md").read_text()


@pytest.fixture(scope="module")
def pasted(tmp_path_factory) -> dict[str, Any]:
    """What is there after every block of Python, run one after the other in an empty folder."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in re.findall(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL):
            exec(block, names)
        names["answers"] = [main(line) for line in commands()]
    return names


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^\$ ontogeny (.*)$", PAGE, re.MULTILINE)]


def test_what_it_shows_is_there(pasted):
    steps = pasted["steps"]
    assert steps["step"].tolist() == list(range(10))
    assert steps["audit_error"].max() < 1e-5
    assert sorted(np.concatenate(steps["datums"][:5].to_numpy())) == list(range(40))
    assert set(pasted["shifts"]["step"]) == {0, 1, 2}
    assert pasted["weights"].shape == (32, 16)


def test_its_commands_answer(pasted):
    assert len(commands()) == 3
    assert pasted["answers"] == [0, 0, 0]
    for line in commands():
        parser().parse_args(line)

"""The code on the page about trainers runs as it is printed, under the trainers themselves."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ontogeny

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "trainers.md").read_text()
NEEDED = ("accelerate", "datasets", "lightning", "transformers", "trl")
RUNS = {"trainer": 10, "sft": 10, "lightning": 10, "accelerate": 3, "windows": 4}
"""Name of each run → its steps."""
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about themselves


@pytest.fixture(scope="module")
def page_variables(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Variables after all Python blocks have run in order in an empty folder."""
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name} is not installed")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in re.findall(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL):
            exec(block, names)
        yield names


@pytest.mark.parametrize("name", RUNS)
def test_each_block_makes_a_run(name: str, page_variables: dict[str, Any]) -> None:
    run = ontogeny.open_run(f"runs/{name}")
    steps = run.steps()
    assert len(steps) == RUNS[name]
    assert steps["audit_error"].max() < 1e-5
    assert "cat" in set(run.vocabulary()["token"])
    if name != "windows":
        first_epoch = np.concatenate(steps["datums"][: len(steps) // int(steps["epoch"].max() + 1)])
        assert sorted(first_epoch) == [*range(40)]


def test_the_shifts_of_the_page_are_there(page_variables: dict[str, Any]) -> None:
    assert set(page_variables["shifts"]["step"]) == {0, 1}
    assert len(page_variables["steps"]) == 10
    assert list(ontogeny.open_run("runs/lightning").evaluations()["step"]) == [5, 10]
    table = page_variables["table"]
    assert table.num_rows == 40
    assert {"datum", "tokens", "last_target", "text"} <= set(table.column_names)

"""The page on ablating any model runs as printed; its table has the families that are tested."""

import re
from typing import Any

import pytest
from checkout import ROOT
from tiny_families import families

PAGE = (ROOT / "docs" / "how-to" / "any-model.md").read_text()


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in re.findall(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL):
            exec(block, names)
    return names


def test_the_model_of_the_page_is_ablated(variables: dict[str, Any]) -> None:
    heads = variables["heads"]
    assert set(heads["unit"]) == {"blocks.0.mix", "blocks.1.mix"}
    assert sorted(heads["neuron"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (heads["change"] != 0).all()
    assert set(variables["neurons"]["level"]) == {"neuron"}


def test_the_table_has_a_row_for_each_tested_family() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", PAGE, flags=re.MULTILINE)
    assert sorted(rows[1:]) == sorted(families())

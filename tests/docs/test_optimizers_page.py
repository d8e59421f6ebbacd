"""The code on the page about optimizers runs as it is printed."""

import re
from pathlib import Path

import ontogeny

PAGE = (Path(__file__).parents[2] / "docs" / "concepts" / "optimizers.md").read_text()


def test_the_optimizer_of_the_page_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL)
    exec(block, {})
    assert ontogeny.open_run("runs/lion").steps()["audit_error"].max() < 1e-5


def test_every_optimizer_of_torch_is_in_the_text():
    from capture.optim.rules.finding import RULES, UNSUITABLE

    text = PAGE.partition("## Other optimizers of custom loops")[2]
    for kind in (*RULES, *UNSUITABLE):
        assert kind.__name__ in text

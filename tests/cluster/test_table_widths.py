"""Tables keep to the width that COLUMNS gives, and never cut their first column."""

import io

import pytest
from rich.console import Console

from cluster.terminal.console import make_console
from cluster.terminal.tables import data_table, print_table

LONG = "transformer.decoder.blocks.17.feed_forward.output_projection.weight"


NUMBERS = ("1234", "0.1234", "-0.1234", "-0.1234 to 0.1234", "1,234")


def printed(width: int, unit: str) -> list[str]:
    file = io.StringIO()
    table = data_table("unit", "neuron", "effect", "notable", "95 %", "flips")
    table.add_row(unit, *NUMBERS)
    print_table(Console(file=file, width=width), "title", table)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
@pytest.mark.parametrize("unit", [LONG, "layers.2.linear2.weight"])
def test_cells_are_folded_and_never_cut(width: int, unit: str) -> None:
    lines = printed(width, unit)
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    assert "…" not in text
    assert len(text) >= len("".join(["title", "unit", "neuron", unit, *NUMBERS]))


@pytest.mark.parametrize("width", [80, 110, 200])
def test_numbers_stay_whole_where_the_name_can_be_folded(width: int) -> None:
    lines = printed(width, LONG)
    assert any(all(number in line for number in NUMBERS) for line in lines)
    names = [line.split()[0] for line in lines[5:] if line.strip()]
    assert "".join(names) == LONG


@pytest.mark.parametrize("width", [90, 100, 110])
def test_a_name_is_folded_between_its_parts(width: int) -> None:
    names = [line.split()[0] for line in printed(width, LONG)[5:] if line.strip()]
    assert all(name.endswith(".") for name in names[:-1])
    assert "".join(names) == LONG


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("200", 200), ("", 110), ("x", 110)])
def test_columns_gives_the_width_where_output_is_no_terminal(
    columns: str, width: int, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert make_console().width == width


def test_without_columns_pipes_get_a_width_of_their_own(monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console().width == 110

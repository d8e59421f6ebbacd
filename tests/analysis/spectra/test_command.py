"""``ontogeny spectrum`` and its errors, from the command line."""

import json
from pathlib import Path

import pytest
from tiny_run import copied, tiny_run

from analysis.run.run import open_run
from analysis.spectra.config import SpectrumConfig
from analysis.spectra.tables import SCHEMAS
from cluster.cli import main
from ontogeny import spectrum

FEW = "--units layers.1.linear2.weight --draws 2 --repeats 2"


def test_the_command_prints_numbers_beside_nulls_and_keeps_the_tables(capsys):
    place = copied(tiny_run(), "memory://spectrum-command").uri
    asked = f"spectrum {place} {FEW} --rows 2 --low-rank 1"
    assert main(asked.split()) == 0
    text = capsys.readouterr().out
    for wanted in (
        "Spectrum of the gradients",
        "null: norms kept",
        "unit length",
        "samples of 12 steps",
        "When neurons were moved: the first and the last of those",
        "layers.1.linear2.weight:neuron",
        "Datums that load on the directions",
        "updates projected on the first directions",
        "Random directions are drawn --draws times",
        "analysis/spectrum/",
    ):
        assert wanted in text
    page = open_run(place).store.get("analysis/spectrum/index.html").decode()
    assert page.count("<svg") == 2
    for wanted in ("Singular values", "Datums of the directions", "Training in few directions"):
        assert wanted in page
    table = spectrum(place, SpectrumConfig(units=("layers.1.linear2.weight",), draws=2, repeats=2))
    assert main([*asked.split(), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == list(SCHEMAS)
    assert [row["value"] for row in printed["values"]] == table.values["value"].tolist()
    assert not [key for key in open_run(place).store.keys("analysis") if "unfinished" in key]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--low-rank 1,x", "--low-rank: got '1,x', must be whole numbers with commas"),
        ("--units nothing", "nothing: matches no captured unit. Did you mean"),
        ("--steps 30:40", "has no steps 30 to 39; it has 24. Choose others: --steps A:B."),
        ("--steps 7", "has 1 steps for a spectrum, which needs 3"),
        ("--cutoff 2", "spectrum.cutoff: got 2.0, must be between 0 and 1."),
        ("--of weight", "Did you mean weights"),
        ("--rows 0", "--rows: got 0"),
        ("--seed -1", "spectrum.seed: got -1, must be at least 0"),
    ],
)
def test_bad_input_is_one_line(options: str, text: str, capsys):
    assert main(["spectrum", tiny_run(), *options.split()]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_custom_loop_needs_stored_factors(tmp_path: Path, capsys):
    import torch

    import ontogeny

    for name, factors in (("without", False), ("with", True)):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kept = ontogeny.FactorConfig(enabled=factors)
        place = tmp_path / name
        with ontogeny.record(
            model, optimizer, run=str(place), datums=8, factors=kept, segment_steps=4
        ) as recorder:
            for step in range(10):
                recorder.datums([step % 8, (step + 3) % 8])
                optimizer.zero_grad()
                model(torch.randn(2, 4)).square().mean().backward()
                optimizer.step()
    few = ["--draws", "2", "--repeats", "2", "--quiet"]
    assert main(["spectrum", str(tmp_path / "with"), *few]) == 0
    assert main(["spectrum", str(tmp_path / "without"), *few]) == 2
    assert "cannot be replayed. Record factors while it trains" in capsys.readouterr().err
    assert main(["spectrum", str(tmp_path / "with"), "--of", "updates", "--name", "u", *few]) == 2
    found = spectrum(tmp_path / "with", SpectrumConfig(draws=2, repeats=2))
    assert len(found.values) == 10
    assert found.datums["datum"].max() < 8

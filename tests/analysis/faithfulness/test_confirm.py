"""``attribute --confirm`` confirms planted structure, and nothing of an untrained model."""

import functools
import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_run import make_run

import ontogeny
from analysis.attribution import tables
from analysis.attribution.attribute import attribute, write_attribution
from analysis.attribution.config import AttributionConfig
from analysis.attribution.tables import Attribution
from analysis.faithfulness.confirm import ConfirmConfig, confirm, require_confirmable
from analysis.faithfulness.confirmed_pairs import Verdicts
from analysis.jobs.tables import concat_frames, read_table
from analysis.measures.confirmation import Changes
from analysis.run.run import Run, open_run
from capture.errors import ConfigError, RunError
from capture.models.transformer import LanguageModel
from cluster.cli import main
from cluster.local.threads import run_job
from cluster.terminal.confirmation_tables import remarks

UNIT = "layers.1.linear2.weight"
NEURONS, PLANTED = 32, 20


@functools.cache
def small_run() -> Run:
    words = np.random.default_rng(0).integers(50, size=3000)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text(" ".join(f"w{word}" for word in words))
        settings = [f"corpus.path={folder}/text.txt", f"model.hidden={NEURONS}", "model.width=64"]
        settings += ["corpus.validation_share=0.7", "training.epochs=1"]
        return open_run(make_run("memory://confirm", *settings))


def planted_model() -> LanguageModel:
    """Return the initial model with ``PLANTED`` neurons that each write to a token's logit."""
    run = small_run()
    model = run.model(0)
    decoder = model.decoder.weight.detach()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        weight = model.get_parameter(UNIT)
        for neuron in range(PLANTED):
            direction = decoder[token_of(neuron)] - decoder.mean(0)
            weight[:, neuron] = 3 * direction / direction.norm()
        model.get_parameter("layers.1.linear1.bias")[:PLANTED] += torch.from_numpy(
            rng.uniform(0.5, 1.0, PLANTED).astype(np.float32)
        )
    return model


def token_of(neuron: int) -> int:
    return frequent_tokens()[neuron % len(frequent_tokens())]


@functools.cache
def frequent_tokens() -> list[int]:
    """Return tokens at 10 or more held-out positions."""
    target = small_run().datums("validation")["last_target"].to_numpy()
    tokens = np.concatenate([*small_run().datums("validation")["tokens"], target])
    return np.flatnonzero(np.bincount(tokens) >= 14).tolist()


def named(token_of) -> Attribution:
    """Return an attribution that names one token for each neuron."""
    run = small_run()
    rows = [
        {"level": "neuron", "unit": UNIT, "group": neuron, "rank": 0}
        | {"token_id": token_of(neuron), "token": run.tokens[token_of(neuron)]}
        for neuron in range(NEURONS)
    ]
    windows = [
        row
        | {"window": window, "first_step": 5 * window, "end_step": 5 * window + 5}
        | {"weight": float(window == row["group"] % 2)}
        for row in rows
        for window in range(2)
    ]
    empty = {name: schema.empty_table().to_pandas() for name, schema in tables.TABLES.items()}
    return Attribution(
        **empty
        | {
            "tokens": full(rows, tables.TOKENS),
            "windows": full(windows, tables.WINDOWS),
        }
    )


def full(rows, schema) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    missing = {field.name: np.nan for field in schema if field.name not in frame}
    return concat_frames([frame.assign(**missing)], schema)


def confirmed_with(model: LanguageModel, found: Attribution, **settings) -> Attribution:
    run, initial = small_run(), small_run().model(0)
    with mock.patch.object(
        Run, "parted", lambda self, step=None: model if step is None else initial
    ):
        return confirm(run, found, ConfirmConfig(**settings))


@functools.cache
def planted() -> Attribution:
    return confirmed_with(planted_model(), named(token_of))


def rate(found: Attribution, case: str) -> float:
    (row,) = found.nulls[found.nulls["case"] == case].to_dict("records")
    return row["confirmed_groups"] / row["groups"]


def test_planted_neurons_are_confirmed_and_hardly_any_others() -> None:
    rows = planted().confirmed.set_index("group")
    assert rows.loc[: PLANTED - 1, "confirmed"].mean() >= 0.8
    hits = rows[rows["confirmed"]]
    assert (hits.index >= PLANTED).mean() <= 0.1  # at a false discovery rate of 0.05
    assert (hits.loc[: PLANTED - 1, "high"] < 0).all()
    assert ((hits["low"] <= hits["change"]) & (hits["change"] <= hits["high"])).all()
    assert (hits["positions"] >= 10).all()
    assert hits["alive"].all()


@pytest.mark.parametrize("case", ["untrained model", "shuffled words", "exchanged tokens"])
def test_nulls_confirm_at_most_five_percent(case: str) -> None:
    assert rate(planted(), "record") > 0.4
    assert rate(planted(), case) <= 0.05


def test_progress_counts_pairs_of_both_models_in_small_steps() -> None:
    reports: list[tuple[int, int]] = []
    run, found = small_run(), named(token_of)
    confirm(run, found, ConfirmConfig(max_datums=64), lambda *done: reports.append(done))
    done, total = zip(*reports, strict=True)
    assert set(total) == {2 * NEURONS * 64}
    assert done[-1] == total[-1]
    assert list(done) == sorted(done)
    assert max(np.diff([0, *done])) <= total[0] / 16


def test_noise_is_not_confirmed() -> None:
    rng = np.random.default_rng(0)
    tokens = [frequent_tokens()[n] for n in rng.integers(len(frequent_tokens()), size=NEURONS)]
    found = confirmed_with(small_run().model(0), named(tokens.__getitem__))
    assert found.confirmed["confirmed"].mean() <= 0.05
    assert rate(found, "record") <= 0.05


def test_the_window_with_the_most_evidence_says_when() -> None:
    rows = planted().confirmed
    wanted = 5 * (rows["group"] % 2)
    assert rows["first_step"].tolist() == wanted.tolist()
    assert (rows["end_step"] - rows["first_step"] == 5).all()


def test_tokens_with_too_few_positions_are_not_tested() -> None:
    found = confirmed_with(planted_model(), named(token_of), min_positions=10_000)
    assert not found.confirmed["confirmed"].any()
    assert found.confirmed["p"].isna().all()
    assert len(found.nulls) == 0


def test_an_attribution_of_a_run_is_confirmed_and_stored() -> None:
    run = small_run()
    found = attribute(run, run_job, AttributionConfig.recommended(tallies=True))
    assert len(found.confirmed) == len(found.nulls) == 0
    reports: list[tuple[int, int]] = []
    found = confirm(run, found, ConfirmConfig(), lambda *done: reports.append(done))
    assert reports[-1][0] == reports[-1][1] > 0
    write_attribution(run, found)
    for name in ("confirmed", "nulls"):
        assert read_table(run, "attribute", name, tables.TABLES[name]).equals(getattr(found, name))
    assert len(found.confirmed) == len(found.tokens)


def test_the_public_function_confirms_as_the_command_does() -> None:
    found = ontogeny.attribute(small_run(), confirm=ontogeny.ConfirmConfig(max_datums=40))
    assert found.nulls["case"].tolist()[0] == "record"
    assert len(found.confirmed) == len(found.tokens)


def test_units_cannot_be_confirmed() -> None:
    with pytest.raises(ConfigError, match="cannot ablate whole units"):
        require_confirmable(small_run(), "unit")


def test_a_run_without_held_out_text_is_refused() -> None:
    run = open_run(make_run("memory://confirm-nothing", "corpus.validation_share=0"))
    with pytest.raises(RunError, match="holds no held-out text to confirm"):
        require_confirmable(run, "neuron")


def test_the_command_shows_the_verdict_beside_its_nulls(capsys: pytest.CaptureFixture[str]) -> None:
    uri = small_run().uri
    options = ["--max-q", "1", "--name", "tested", "--confirm", "--confirm-datums", "60"]
    assert main(["attribute", uri, *options]) == 0
    shown = capsys.readouterr().out
    for case in ("record", "untrained model", "shuffled words", "exchanged tokens"):
        assert case in shown
    assert "have such tokens" not in shown
    assert main(["attribute", uri, "--max-q", "1", "--name", "untested"]) == 0
    assert "--confirm tests each by ablation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--confirm-datums", "5"], "--confirm-datums: is given without --confirm"),
        (["--confirm", "--confirm-datums", "0"], "confirm.max_datums: got 0"),
        (["--confirm", "--level", "unit"], "--confirm: cannot ablate whole units"),
    ],
)
def test_bad_options_are_one_line(options: list[str], text: str, capsys) -> None:
    assert main(["attribute", small_run().uri, "--name", "bad", *options]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


def test_an_effect_that_the_initial_weights_had_is_not_confirmed() -> None:
    model = planted_model()
    with mock.patch.object(Run, "parted", return_value=model):
        found = confirm(small_run(), named(token_of), ConfirmConfig())
    assert not found.confirmed["confirmed"].any()
    assert rate(found, "untrained model") <= 0.05
    assert (found.confirmed["change"] == found.confirmed["initial_change"]).all()
    (line,) = [line for line in remarks(found, "neuron") if "initial weights" in line]
    assert re.match(r"\d+ of \d+ tested tokens .* already: this was not learned", line)


def test_an_effect_below_one_percent_is_not_confirmed() -> None:
    changes = noise_with(mean=0.009)
    named_SW = np.ones((1, 1), bool)
    initial = noise_with(mean=0)
    verdict = Verdicts.of(changes, initial, named_SW, np.zeros(1, int), 1.0)
    assert not verdict.confirmed_SW.any()
    verdict = Verdicts.of(noise_with(mean=0.011), initial, named_SW, np.zeros(1, int), 1.0)
    assert verdict.confirmed_SW.all()


def noise_with(mean: float) -> Changes:
    one = np.ones((1, 1))
    return Changes(mean * one, 0.0001 * one, np.array([50]), np.zeros(1), np.ones(1))

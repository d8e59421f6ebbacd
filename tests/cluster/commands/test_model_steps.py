"""``--step`` and ``--steps`` of ablate, activations and faithfulness: the weights are of that step.

Step 9 of ``tiny_run`` lies between two checkpoints and is replayed. A run with a checkpoint there
is the reference.
"""

import numpy as np
import pytest
from reference_ablation import log_probabilities, logits, without
from tiny_run import copied, make_run, tiny_run

from analysis.ablation.subjects import Subject
from analysis.ablation.tables import TABLES
from analysis.activations.tables import TABLES as ACTIVATIONS
from analysis.faithfulness.ground_truth import (
    FaithfulnessConfig,
    evaluation_text,
    measure_effects,
)
from analysis.jobs.tables import read_question, read_table
from analysis.run.run import Run, open_run
from cluster.cli import main

SUBJECT = Subject("layers.1.self_attn", 0, "head")


@pytest.fixture(scope="module")
def run() -> Run:
    place = copied(tiny_run(), "memory://model-steps").uri
    assert main(["attribute", place, "--quiet"]) == 0
    return open_run(place)


@pytest.fixture(scope="module")
def other() -> Run:
    """Run of the same training, with a checkpoint after 9 steps."""
    return open_run(make_run("memory://model-steps-of-9", "capture.segment_steps=9"))


def change_at(run: Run, step: int, token_NT: np.ndarray, target_NT: np.ndarray) -> np.ndarray:
    """Return the change of each target's log-probability without the head, by plain passes."""
    model = run.model(step)
    before, after = (
        log_probabilities(logits(own, token_NT), target_NT)
        for own in (model, without(model, SUBJECT))
    )
    return after - before


def test_ablate_measures_the_weights_of_each_step_that_is_listed(run: Run, other: Run) -> None:
    words = ["ablate", run.uri, "--only", "layers.1.self_attn:0", "--level", "head"]
    words += ["--split", "validation", "--quiet"]
    assert main([*words, "--steps", "7,9"]) == 0
    text = run.datums("validation")
    token_NT = np.stack(list(text["tokens"]))
    target_NT = np.column_stack([token_NT[:, 1:], text["last_target"]])
    found = []
    for step, source in ((7, run), (9, other)):
        table = read_table(run, f"ablate/step-{step}", "neurons", TABLES["neurons"])
        (row,) = table.to_dict("records")
        assert row["scored_datums"] == len(token_NT)
        wanted = change_at(source, step, token_NT, target_NT).mean()
        assert row["change"] == pytest.approx(wanted, abs=1e-5)
        assert read_question(run, f"ablate/step-{step}").options["step"] == step
        found.append(row["change"])
    assert abs(found[0] - found[1]) > 1e-4


def test_activations_have_a_table_for_each_step(run: Run) -> None:
    words = ["activations", run.uri, "--tokens", "w3", "--name", "early", "--quiet"]
    assert main([*words, "--steps", "0,9"]) == 0
    for step in (0, 9):
        job = f"activations/early-step-{step}"
        assert read_table(run, job, "about", ACTIVATIONS["about"])["step"].tolist() == [step]


def test_faithfulness_ablates_the_weights_of_its_step(run: Run, other: Run) -> None:
    config = FaithfulnessConfig(neurons=1, min_count=1, max_datums=20, step=9)
    found = measure_effects(run, [SUBJECT], config, None)
    change_NT = change_at(other, 9, *evaluation_text(run, config))
    assert found.whole.count_V.sum() == change_NT.size
    assert found.whole[0].sum() == pytest.approx(change_NT.sum(), abs=1e-3)
    last = measure_effects(
        run, [SUBJECT], FaithfulnessConfig(**{**vars(config), "step": None}), None
    )
    assert last.whole[0].sum() != pytest.approx(change_NT.sum(), abs=1e-2)

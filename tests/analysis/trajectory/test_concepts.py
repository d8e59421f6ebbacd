"""A concept in examples: a planted one is found where it lies, and a wrong file is one line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_run
from torch import Tensor

from analysis.run.run import open_run
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.metrics.concepts import (
    completions,
    hypervolume,
    probe,
    probe_hypervolume,
    probed,
)
from analysis.trajectory.observed.concept import Completion, Concept, read_concept
from analysis.trajectory.observed.text import Text
from analysis.trajectory.trajectory import trajectory_of_run
from capture.errors import CaptureError, ConfigError

V = 12


def encode(text: str, where: str) -> list[int]:
    return [int(word) for word in text.split()]


def written(folder: Path, *rows: object) -> str:
    path = folder / "concept.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def with_concept(concept: Concept) -> Text:
    return Text(V, 20, None, None, [], concept=concept)


# --- completions ----------------------------------------------------------------------------------


def successor(token_NT: Tensor) -> Tensor:
    """Logits of a model that knows that n + 1 follows n, with log-odds of 9."""
    return 9.0 * torch.nn.functional.one_hot((token_NT + 1) % V, V).float()


def test_a_model_that_knows_the_concept_scores_one_and_its_null_does_not() -> None:
    known = [Completion([9, 1], [2, 3]), Completion([4], [5]), Completion([7], [8, 9])]
    model = SimpleNamespace(logits=successor)
    rows = {row.metric: row for row in completions(model, with_concept(Concept(known)))}  # pyright: ignore
    wanted = np.log1p((V - 1) * np.exp(-9))
    assert rows["completion_loss"].value == pytest.approx(wanted, rel=1e-3)
    assert rows["completion_accuracy"].value == rows["completion_top5"].value == 1
    assert rows["completion_accuracy"].null == 0
    assert rows["completion_loss"].null > 4


def test_one_wrong_token_spoils_a_whole_completion_but_not_the_first_token() -> None:
    half = [Completion([1], [2, 9]), Completion([4], [5])]
    model = SimpleNamespace(logits=successor)
    rows = {row.metric: row for row in completions(model, with_concept(Concept(half)))}  # pyright: ignore
    assert rows["completion_accuracy"].value == 0.5
    assert rows["completion_top5"].value == 1


def test_examples_in_context_are_the_next_ones_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, pair("1", "2"), pair("3 4", "5"), pair("6", "7 8"))
    found = read_concept(path, encode, 20, 2).completions
    assert found[0] == Completion([3, 4, 5, 6, 7, 8, 1], [2])
    assert found[2] == Completion([1, 2, 3, 4, 5, 6], [7, 8])
    assert read_concept(path, encode, 20, 0).completions[0] == Completion([1], [2])


# --- probe ----------------------------------------------------------------------------------------


class Planted:
    """States of noise; after the first layer one entry holds the label."""

    blocks = (None, None)

    def __init__(self, labels: dict[int, str]) -> None:
        self.labels = labels

    def states(self, token_NT: Tensor) -> list[Tensor]:
        rng = np.random.default_rng(int(token_NT[0, 0]))
        noise, later = torch.from_numpy(rng.normal(size=(2, 1, token_NT.shape[1], 6)))
        planted = later.clone()
        planted[..., 2] += 6.0 * (self.labels[int(token_NT[0, 0])] == "pun")
        return [noise, planted, later]


def test_a_planted_label_is_read_where_it_lies_and_nowhere_else() -> None:
    labels = ["pun" if n % 3 else "plain" for n in range(90)]
    concept = Concept((), [[n, 1, 2] for n in range(90)], labels)
    model: Any = Planted(dict(enumerate(labels)))
    rows = {row.component: row for row in probe(model, with_concept(concept))}
    assert rows["layer 0"].value > 0.95
    for name in ("embedding", "layer 1"):
        assert abs(rows[name].value - rows[name].null) < 0.2
    assert rows["layer 0"].null < 0.75
    assert rows["layer 0"].n == 90


def test_the_hypervolume_is_large_where_one_strong_direction_holds_the_label() -> None:
    labels = ["pun" if n % 3 else "plain" for n in range(90)]
    concept = Concept((), [[n, 1, 2] for n in range(90)], labels)
    model: Any = Planted(dict(enumerate(labels)))
    rows = {row.component: row for row in probe_hypervolume(model, with_concept(concept))}
    first = np.log(2) / np.log(7)  # complexity of a probe of rank 1 of 6
    assert rows["layer 0"].value == pytest.approx(2 / 3 * first + 1 - first, abs=0.02)
    assert rows["layer 1"].value < 0.75
    assert rows["layer 0"].null < 0.75


def test_the_hypervolume_is_that_of_guessing_if_the_weakest_direction_holds_the_label() -> None:
    rng = np.random.default_rng(0)
    label_N = np.array(["pun" if n % 3 else "plain" for n in range(90)])
    state_ND = rng.normal(size=(90, 5)) @ np.diag([5.0, 4, 3, 2, 1])
    weak_N1 = 0.1 * (label_N == "pun")[:, None] + 0.001 * rng.normal(size=(90, 1))
    assert hypervolume(np.hstack([state_ND, weak_N1]), label_N, 0) < 0.72
    assert probed(np.hstack([state_ND, weak_N1]), label_N, 0).mean() > 0.95


# --- on a run, and bad input ----------------------------------------------------------------------


def test_words_of_a_run(tmp_path: Path) -> None:
    texts = [{"text": f"w{n} w{n + 1}", "label": "even" if n % 2 else "odd"} for n in range(11)]
    path = written(tmp_path, pair("w1 w2", "w3"), pair("w3", "w4 w5"), *texts)
    wanted = ("completion_loss", "probe")
    found = trajectory_of_run(
        open_run(tiny_run()), TrajectoryConfig(metrics=wanted, concept=path, shots=1, checkpoints=2)
    )
    assert found.series("completion_loss")["n"].tolist() == [2, 2]
    assert found.series("probe", "layer 1")["n"].tolist() == [11, 11]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], r"concept\.jsonl:1: is not JSON"),
        ([{"prompt": "1"}], "must be an object of texts with prompt and completion"),
        ([pair("1", "2"), {"text": 3, "label": "a"}], r"concept\.jsonl:2: must be an object"),
        ([], "holds no examples"),
        ([{"text": "1", "label": "a"}] * 9, r"too few labelled texts \(a: 9\)"),
        ([pair("1 2 3 4 5 6 7 8 9", "1")], "has an example of 9 tokens, the model takes 8"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as raised:
        read_concept(written(tmp_path, *rows), encode, 8, 0)
    assert "\n" not in str(raised.value)


def test_more_shots_than_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--shots: got 1, but .* has 1 prompts"):
        read_concept(written(tmp_path, pair("1", "2")), encode, 8, 1)
    with pytest.raises(ConfigError, match="is given without --concept"):
        TrajectoryConfig(shots=1)


def test_an_unknown_word_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, pair("w1", "zebra"))
    with pytest.raises(ConfigError, match=r"jsonl:1: token 'zebra' is not in the vocabulary"):
        trajectory_of_run(open_run(tiny_run()), TrajectoryConfig(concept=path))

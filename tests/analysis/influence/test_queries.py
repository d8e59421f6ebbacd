"""Queries: values against slow references, gradients against finite differences, errors."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_ablation import log_probabilities, logits
from tiny import TEXT
from tiny_hf import hf_config
from tiny_run import tiny_run
from torch import Tensor

from analysis.ablation.log_probability import log_probability_changes
from analysis.ablation.replacement import Value
from analysis.ablation.subjects import Level, Subject
from analysis.influence.queries.effects import EffectQuery
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.influence.queries.states import DirectionQuery
from analysis.influence.queries.texts import CompletionQuery
from analysis.run.run import Run, open_run
from capture.errors import CaptureError
from capture.training.loop import capture_run

UNIT = "layers.1.linear2.weight"
NUM_DIRECTIONS = 1
SUBJECTS: list[tuple[Level, str, int]] = [
    ("neuron", UNIT, 3),
    ("neuron", "layers.0.self_attn.in_proj_weight", 5),
    ("neuron", "layers.0.self_attn.out_proj.weight", 2),
    ("row", "layers.0.linear1.weight", 7),
    ("row", UNIT, 4),
    ("row", "layers.1.self_attn.in_proj_weight", 11),
    ("head", "layers.0.self_attn", 0),
    ("head", "layers.1.self_attn", 1),
]
ONLY_ZERO = SUBJECTS[5:6]
"""Rows of ``in_proj``, whose output is no module's."""


def effect(level: str, unit: str, number: int = 3, **settings: str) -> dict[str, Any]:
    return {"kind": "effect", "level": level, "unit": unit, "number": number, **settings}


@functools.cache
def run() -> Run:
    return open_run(tiny_run())


def weights(opened: Run, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: own.to(dtype) for name, own in opened.network().named_parameters()}


def words(folder: Path) -> list[Any]:
    """One query of every kind."""
    text, vector = folder / "text.txt", folder / "direction.npy"
    text.write_text("w1 w2 . w4 w9 w11 , w1 w2 w3 w5 w7 w9")
    np.save(vector, np.linspace(-1, 1, 12))
    return [
        *("loss", "loss:train", "datum:3", "datum:validation:0", "token:w3", "token:train:."),
        *(f"text:{text}", f"neuron:{UNIT}:3", f"row:{UNIT}:4@w5", "head:layers.0.self_attn:1"),
        *("parameter:decoder.bias:2", f"norm:{UNIT}:1", f"direction:layers.0.linear2:{vector}"),
        {"prompt": "w1 w3", "completion": "w4"},
        effect("neuron", UNIT, value="mean", token="w5"),
        effect("row", UNIT, value="resample", token="w5"),
        {"prompt": "w1 w3", "completion": "w4 .", "measure": "loss"},
        {"prompt": "w1 w3", "completion": "w4", "rival": "w5 w6"},
    ]


# --- laws -----------------------------------------------------------------------------------------


def test_gradients_equal_finite_differences(tmp_path: Path):
    check_gradients(run(), build_queries(run(), words(tmp_path)))


def check_gradients(opened: Run, queries: list[Query]) -> None:
    own, step = weights(opened), 1e-6
    generator = torch.Generator().manual_seed(0)
    for query in queries:
        value, gradient = query.gradient(own)
        assert value == pytest.approx(query.value(own), rel=1e-12)
        for _ in range(NUM_DIRECTIONS):
            along = {n: torch.randn(w.shape, generator=generator).double() for n, w in own.items()}
            found = sum(float((gradient[name] * along[name]).sum()) for name in own)
            ahead, behind = (
                query.value({name: own[name] + sign * step * along[name] for name in own})
                for sign in (1, -1)
            )
            wanted = (ahead - behind) / (2 * step)
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-8), query.name


def test_a_description_builds_the_query_again(tmp_path: Path):
    asked = build_queries(run(), words(tmp_path))
    again = build_queries(run(), [json.loads(json.dumps(query.description)) for query in asked])
    own = weights(run())
    for one, other in zip(asked, again, strict=True):
        assert one.value(own) == other.value(own)


@pytest.mark.parametrize(
    ("level", "unit", "number", "value"),
    [
        *((*subject, "zero") for subject in SUBJECTS),
        *((*subject, "mean") for subject in SUBJECTS if subject not in ONLY_ZERO),
        *((*subject, "resample") for subject in SUBJECTS[::3]),
    ],
)
def test_effects_are_those_that_ablation_measures(
    level: Level, unit: str, number: int, value: Value
):
    text = run().datum_table("validation")
    model, own = run().model(), weights(run(), torch.float32)
    token_NT = np.array(text["tokens"].to_pylist(), np.int32)
    target_NT = np.hstack([token_NT[:, 1:], text["last_target"].to_numpy()[:, None]])
    changes = log_probability_changes(
        model,
        token_NT,
        target_NT,
        [Subject(unit, number, level)],
        value=value,
        num_tokens=run().num_tokens,
        mean_text_NT=np.array(run().datum_table("train")["tokens"].to_pylist(), np.int32),
    )
    mean_V = changes.change_SV[0] / np.maximum(changes.count_V, 1)
    tokens = np.flatnonzero(changes.count_V)
    subject = EffectQuery(level=level, unit=unit, number=number, value=value)
    asked = [replace(subject, token=run().tokens[token]) for token in tokens]
    found = [query.value(own) for query in build_queries(run(), asked)]
    np.testing.assert_allclose(found, -mean_V[tokens], atol=3e-6)
    (strongest,) = build_queries(run(), [subject])
    enough = tokens[changes.count_V[tokens] >= min(10, changes.count_V.max())]
    assert strongest.value(own) == pytest.approx(-mean_V[enough].min(), abs=3e-6)
    assert strongest.description["token"] in [run().tokens[token] for token in enough]


def test_completions_are_scored_after_their_prompt():
    asked = CompletionQuery(prompt="w1 w3", completion="w4 , w9")
    (query,) = build_queries(run(), [asked])
    ids = [run().tokens.index(word) for word in ["w1", "w3", "w4", ",", "w9"]]
    stream = np.array([ids], np.int32)
    log_p_NT = log_probabilities(logits(run().model(), stream[:, :-1]), stream[:, 1:])
    assert query.value(weights(run())) == pytest.approx(log_p_NT[0, 1:].sum(), rel=1e-5)
    assert query.better == "higher"
    (loss,) = build_queries(run(), [{**asked.describe(), "measure": "loss"}])
    assert loss.value(weights(run())) == pytest.approx(-log_p_NT[0, 1:].mean(), rel=1e-5)
    assert loss.better == "lower"


def test_a_split_is_scored_as_evaluation_scores_it():
    (query,) = build_queries(run(), ["loss:validation"])
    last = run().evaluations().query("split == 'validation'")["loss"].iloc[-1]
    assert query.value(weights(run(), torch.float32)) == pytest.approx(last, rel=1e-5)


def test_hugging_face_models_have_the_same_queries(tmp_path: Path):
    config = hf_config(tmp_path, "gpt2")
    capture_run(config, lambda event: None)
    opened = open_run(config.run.uri)
    neuron = "transformer.h.1.mlp.c_proj.weight"
    asked = ["loss", f"neuron:{neuron}:5", f"row:{neuron}:2", f"norm:{neuron}:31"]
    queries = build_queries(opened, [*asked, {"prompt": "the cat", "completion": "sat on"}])
    check_gradients(opened, queries)
    ablated = weights(opened)
    ablated[neuron] = ablated[neuron].clone()
    ablated[neuron][5] = 0  # stored [inputs, outputs]
    token = queries[1].description["token"]
    (clean,) = build_queries(opened, [f"token:{token}"])
    expected = clean.value(weights(opened)) - clean.value(ablated)
    assert queries[1].value(weights(opened)) == pytest.approx(expected, rel=1e-9)
    assert "the cat" in TEXT
    (head,) = build_queries(opened, ["head:transformer.h.0.attn:1"])
    check_gradients(opened, [head])
    ablated = weights(opened)
    out = "transformer.h.0.attn.c_proj.weight"
    ablated[out] = ablated[out].clone()
    ablated[out][4:] = 0  # head 1 of two, of width 4
    (clean,) = build_queries(opened, [f"token:{head.description['token']}"])
    expected = clean.value(weights(opened)) - clean.value(ablated)
    assert head.value(weights(opened)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(CaptureError, match=r"transformer\.h\.0\.attn head 2: does not exist"):
        build_queries(opened, ["head:transformer.h.0.attn:2"])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"prompt": "w1", "completion": "w77"}, "completion.completion: token 'w77' is not in"),
        ({"prompt": "", "completion": "w1"}, "completion.prompt: is empty"),
        ({"prompt": "w1", "completion": " "}, "completion.completion: is empty"),
        ({"prompt": "w1 " * 9, "completion": "w2"}, "but the model takes 8"),
        ({"prompt": "w1", "completion": "w2", "measure": "mass"}, "wanted log-probability or loss"),
        ({"prompt": "w1", "completion": "w2", "rival": "w3", "measure": "loss"}, "cannot go with"),
        ({"prompt": "w1"}, "lacks 'completion'"),
        ({"prompt": "w1", "completion": 3}, "has the wrong type"),
        ({"prompt": "w1", "completion": "w2", "temperature": 1}, "has an unknown key"),
        ({"kind": "dream"}, "has kind 'dream'"),
        ("", "has an unknown form"),
        ("dream:1", "has an unknown form"),
        ("token:w77", "is not in the vocabulary"),
        ("token:test:w3", "has no test split. Choose from: train, validation"),
        ("datum:1000", "has no train datum 1000"),
        ("datum:x", "has 'x' for a number"),
        ("loss:dream", "wanted train, validation, test"),
        ("neuron:layers.1.linear2:3", "has no neurons"),
        (f"neuron:{UNIT}:99", "neurons are 0 to 11"),
        (f"neuron:{UNIT}:3@w77", "is not in the vocabulary"),
        ("head:layers.0.self_attn:2", "heads are 0 to 1"),
        (effect("neuron", UNIT, value="median"), "wanted zero, mean, resample"),
        (effect("row", "layers.0.self_attn.in_proj_weight", value="mean"), "only be set to zero"),
        ("parameter:decoder.bias:99", "indices are 0 to"),
        ("parameter:dream:0", "is no parameter"),
        ("norm:decoder.bias:0", "has no neurons"),
        ("direction:dream:x.npy", "is no module"),
        ("direction:layers.0:absent.npy", "cannot be read"),
        ("function:mine", "wanted MODULE:NAME"),
        ("text:absent.txt", "cannot be read"),
        ("absent.jsonl", "cannot be read"),
    ],
)
def test_impossible_queries_are_refused_in_one_line(asked: Any, wanted: str):
    with pytest.raises(CaptureError) as caught:
        build_queries(run(), [asked])
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_gets_the_weights_in_the_order_of_the_model(monkeypatch, tmp_path: Path):
    """Stored weights come in another order; a function may take the first."""
    code = "def first(model, weights):\n    return next(iter(weights.values())).norm()\n"
    (tmp_path / "own_query.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    (query,) = build_queries(run(), ["function:own_query:first"])
    sys.modules.pop("own_query")
    own = weights(run())
    backwards = dict(reversed(list(own.items())))
    wanted = next(iter(own.values())).norm()
    assert query.value(backwards) == query.value(own) == pytest.approx(wanted.item())


def test_no_query_is_refused():
    with pytest.raises(CaptureError, match="queries: are empty"):
        build_queries(run(), [])


@pytest.mark.parametrize(
    ("vector", "wanted"),
    [
        (np.zeros(12), "zero vector"),
        (np.full(12, np.nan), "one vector of finite numbers"),
        (np.ones((3, 4)), "one vector of finite numbers"),
        (np.array(["a"]), "one vector of finite numbers"),
        (np.ones(5), "has 5 entries, but the input of layers.0.linear2 has 12"),
    ],
)
def test_unfit_vectors_are_refused(vector: np.ndarray, wanted: str, tmp_path: Path):
    file = tmp_path / "vector.npy"
    np.save(file, vector)
    asked = DirectionQuery(module="layers.0.linear2", vector=str(file))
    with pytest.raises(CaptureError, match=wanted):
        build_queries(run(), [asked])[0].value(weights(run()))


def test_a_value_that_is_not_finite_is_refused():
    (query,) = build_queries(run(), ["loss"])
    own = weights(run())
    own["decoder.bias"][0] = torch.nan
    with pytest.raises(CaptureError, match="not a finite number"):
        query.gradient(own)


def test_an_effect_falls_to_zero_with_its_weights():
    (query,) = build_queries(run(), [f"neuron:{UNIT}:3@w3"])
    own = weights(run())
    own[UNIT] = own[UNIT].clone()
    own[UNIT][:, 3] = 0
    assert query.value(own) == 0

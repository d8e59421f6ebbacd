"""Factors read out in the vocabulary are the changes that they would make to the logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import uri
from numpy.testing import assert_allclose
from tiny import make_run, tiny_config
from tiny_families import VOCABULARY, WINDOW, tiny_model
from torch.nn import functional as F

import ontogeny
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.errors import ConfigError, RunError, UnitError

UNIT = "layers.1.linear2.weight"
STEP = 8
"""A step with a checkpoint of its weights; the two steps after it have none."""


@pytest.fixture(scope="module")
def normless(tmp_path_factory: pytest.TempPathFactory) -> ontogeny.Run:
    """A run of a model without norms, so that its last layer acts on logits linearly."""
    more = ("model.norm=none", "model.dropout=0", "capture.factors.enabled=true")
    config = tiny_config(tmp_path_factory.mktemp("normless"), *more, "training.epochs=1")
    make_run(config)
    return ontogeny.open_run(config.run.uri)


def datum_of(run: ontogeny.Run, step: int = STEP) -> int:
    return int(run.steps()["datums"][step][1])


@pytest.mark.parametrize("step", [STEP, STEP + 2])
def test_a_step_along_one_position_changes_the_logits_as_its_output_side_says(
    normless, step: int
) -> None:
    run, datum = normless, datum_of(normless, step)
    model, position, rate = run.model(step).double(), 3, 1e-3
    use = run.gradients.read(UNIT, [(step, datum)])[0].uses[0].map_tensors(torch.Tensor.double)
    assert use.a_NTI is not None
    a_I, delta_O = use.a_NTI[0, position], use.delta_NTO[0, position]
    tokens = torch.from_numpy(run.token_NT[datum]).long()[None]
    with torch.no_grad():
        before_V = model(tokens)[0, position]
        model.layers[1].linear2.weight -= rate * torch.outer(delta_O, a_I)
        change_V = (model(tokens)[0, position] - before_V) / (rate * a_I.square().sum())
    found = run.read_out(step, datum, UNIT, most=run.num_tokens)
    found = found[(found["position"] == position) & (found["side"] == "output")]
    found = found[found["rank"] > 0].sort_values("token_id")
    assert set(found["unembedding_step"]) == {step}
    wanted_V = (change_V - change_V.mean()).numpy()
    assert_allclose(found["logit"], wanted_V, atol=1e-4 * np.abs(wanted_V).max())


def test_ranks_go_down_from_the_largest_logit_and_up_from_the_smallest(normless) -> None:
    run, datum = normless, datum_of(normless)
    whole = run.read_out(STEP, datum, UNIT, most=run.num_tokens)
    found = run.read_out(STEP, datum, UNIT, most=2)
    assert set(found["side"]) == {"output"}  # its inputs are the neurons of the MLP
    for position, own in found.groupby("position"):
        assert own["rank"].tolist() == [1, 2, -2, -1]
        all_V = whole.loc[(whole["position"] == position) & (whole["rank"] > 0), "logit"]
        assert own["logit"].tolist() == [*all_V.iloc[:2], *all_V.iloc[-2:]]
    assert found["token"].tolist() == [run.tokens[i] for i in found["token_id"]]


def test_a_weight_that_reads_and_writes_the_stream_has_both_sides(normless) -> None:
    unit = "layers.0.self_attn.out_proj.weight"
    found = normless.read_out(STEP, datum_of(normless), unit, most=1)
    assert set(found["side"]) == {"input", "output"}
    assert len(found) == 2 * 2 * found["position"].nunique()


def test_the_final_norm_of_another_model_is_applied_without_its_division(tmp_path: Path) -> None:
    model = tiny_model("gpt2").train(False)
    with torch.no_grad():
        gain = next(x for name, x in model.named_parameters() if name.endswith("ln_f.weight"))
        gain.uniform_(0.5, 2.0)
    datums = torch.randint(VOCABULARY, (4, WINDOW + 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    initial = {name: x.detach().clone() for name, x in model.named_parameters()}
    factors = FactorConfig(enabled=True)
    with record(model, optimizer, run=uri(tmp_path), datums=datums, factors=factors) as recorder:
        recorder.datums(range(4))
        F.cross_entropy(model(datums[:, :-1]).flatten(0, 1), datums[:, 1:].flatten()).backward()
        optimizer.step()
    run = ontogeny.open_run(uri(tmp_path), model=tiny_model("gpt2"))
    unit = next(name for name in run.layout.names if name.endswith("h.1.mlp.c_fc.weight"))
    use = run.gradients.read(unit, [(0, 2)])[0].uses[0]
    assert use.a_NTI is not None
    gain_D = next(x for name, x in initial.items() if name.endswith("ln_f.weight"))
    weight_VD = next(x for name, x in initial.items() if name.endswith("wte.weight"))
    x_TD = use.a_NTI[0]
    logit_TV = ((x_TD - x_TD.mean(1, keepdim=True)) * gain_D) @ weight_VD.T
    wanted_TV = (logit_TV - logit_TV.mean(1, keepdim=True)).numpy()
    found = run.read_out(0, 2, unit, most=VOCABULARY)
    assert set(found["side"]) == {"input"}
    assert set(found["unembedding_step"]) == {0}
    found = found[found["rank"] > 0].sort_values(["position", "token_id"])
    assert_allclose(found["logit"], wanted_TV.ravel(), atol=1e-4)
    with pytest.raises(RunError, match="Pass"):
        ontogeny.open_run(uri(tmp_path)).read_out(0, 2, unit)


def test_units_without_a_side_in_the_stream_are_refused(normless) -> None:
    datum = datum_of(normless)
    with pytest.raises(UnitError, match=r"has one axis.* Choose a weight of two axes"):
        normless.read_out(STEP, datum, "layers.0.linear1.bias")
    with pytest.raises(UnitError, match="was not captured"):
        normless.read_out(STEP, datum, "layers.0.linear3.weight")
    with pytest.raises(ConfigError, match="most: got 0, must be at least 1"):
        normless.read_out(STEP, datum, UNIT, most=0)

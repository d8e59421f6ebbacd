"""Runs of Hugging Face models: the laws hold as for the study's model."""

import numpy as np
import pytest
import torch
from tiny import contents, make_run, read_outliers
from tiny_hf import LAYERS, SETTINGS, hf_config, save_model
from tiny_run import tiny_run

import ontogeny
from analysis.run.run import open_run
from analysis.run.tallies import tally_units
from capture.corpus.datums import load_corpus
from capture.engine.build import build_engine, complete_config
from capture.engine.observer import to_device
from capture.engine.step_plan import StepPlan
from capture.errors import RunError, UnitError
from capture.format import checkpoint
from capture.format.chain import read_segments
from capture.format.factor_tables import lay_out
from capture.gradients.factored_algebra import dense
from capture.models.transformer import build_model
from capture.store import Store
from capture.training.loop import capture_run
from cluster.cli import main

transformers = pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")


@pytest.fixture(params=SETTINGS)
def family(request) -> str:
    return request.param


def test_a_run_is_audited_resumable_and_reproducible(tmp_path, family):
    make_run(hf_config(tmp_path, family))
    run = open_run(str(tmp_path / "run"))
    errors = run.steps()["audit_error"]
    assert len(errors) == 14
    assert ((errors > 0) & (errors < 1e-4)).all()  # 1e-5 and what storing the weights rounds away
    assert run.config.capture.units == [LAYERS[family]]
    assert set(read_outliers(run.uri)["unit"].to_pylist()) <= set(run.layout.names)
    interrupted = hf_config(tmp_path, family, name="again")

    def stop_at_nine(event: object) -> None:
        if getattr(event, "steps_done", 0) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_run(interrupted, stop_at_nine)
    assert len(read_segments(Store(interrupted.run.uri))) == 1
    make_run(interrupted, resume=True)
    assert contents(interrupted.run.uri) == contents(run.uri)


def test_every_parameter_is_captured_and_tied_ones_once(tmp_path):
    make_run(hf_config(tmp_path, "gpt2", "capture.units=['*']"))
    run = open_run(str(tmp_path / "run"))
    model = run.network()
    assert run.layout.size == sum(parameter.numel() for parameter in model.parameters())
    assert run.layout.names == [name for name, _ in model.named_parameters()]
    assert "transformer.wte.weight" in set(read_outliers(run.uri)["unit"].to_pylist())
    assert (run.steps()["audit_error"] < 1e-5).all()
    stored = checkpoint.read_checkpoint(run.store, 14)
    assert stored.keys() == set(run.layout.names)


def test_a_checkpoint_becomes_a_model_that_the_library_loads(tmp_path):
    from transformers import AutoModelForCausalLM

    make_run(hf_config(tmp_path, "llama"))
    run = ontogeny.open_run(str(tmp_path / "run"))
    run.to_transformers(8).save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    wanted = run.checkpoint(8)
    assert all(torch.equal(loaded[name], wanted[name]) for name in run.layout.names)
    with pytest.raises(RunError, match="has no model of transformers"):
        ontogeny.open_run(tiny_run()).to_transformers()


TWICE, HALF = "training.accumulate=2", "training.precision=bfloat16"


@pytest.mark.parametrize("settings", [[], [TWICE], [HALF], [TWICE, HALF]])
def test_linear_layers_with_the_same_input_share_a_stored_array(tmp_path, settings):
    """A Llama layer has four distinct inputs (q, k, v and gate, up share one each) and seven δ."""
    plan = plan_of(hf_config(tmp_path, "llama", "capture.units=['*_proj.weight']", *settings))
    token_NT, target_NT = to_device(plan.corpus.train, torch.device("cpu"))
    engine = build_engine(plan, ["factors"])
    _, factors, _ = engine.gradients(token_NT[:4], target_NT[:4], 0)
    layout, _ = lay_out(factors, "float32")
    assert len(layout.arrays) == 2 * (4 + 7)


def test_a_datum_s_gradient_does_not_depend_on_its_batch(tmp_path, family):
    """Law 3; the library's dropout would break it and is off."""
    plan = plan_of(hf_config(tmp_path, family))
    token_NT, target_NT = to_device(plan.corpus.train, torch.device("cpu"))
    orders = ([0, 1, 2, 3], [5, 3, 0, 9])
    found = []
    for order in orders:
        engine = build_engine(plan, plan.config.capture.kinds)
        factors = engine.step(token_NT[order], target_NT[order], step=0, epoch=0).factors
        shapes = {name: tuple(unit.shape) for name, unit in engine.units.items()}
        row_NP = torch.cat([dense(factors[name], s).flatten(1) for name, s in shapes.items()], 1)
        found.append(row_NP[order.index(0)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-8)


def test_weights_follow_from_the_seed_and_leave_torch_s_generator_alone(tmp_path, family):
    config = complete_config(hf_config(tmp_path, family)).model
    before = torch.get_rng_state()
    one, same, other = (
        build_model(config, vocabulary=20, window=8, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_starts_from_a_folder_s_weights_does_not_need_it_later(tmp_path, family):
    source = tmp_path / "source"
    saved = save_model(source, family, vocabulary=300)
    here = f"corpus.tokenizer={source}"
    make_run(hf_config(tmp_path, {"path": str(source)}, here, "run.seed=3"))
    for file in source.iterdir():
        file.unlink()
    run = open_run(str(tmp_path / "run"))
    assert run.config.model.hf.family == family
    begun, wanted = run.network(0).state_dict(), saved.state_dict()
    assert all(torch.equal(begun[name], wanted[name]) for name in wanted)
    assert run.steps()["audit_error"].notna().all()
    assert main(["replay", run.uri, "--record", "factors", "--workers", "1"]) == 0
    unit = run.layout.names[0]
    assert open_run(run.uri).gradient(9, int(run.steps()["datums"][9][0]), unit).any()


MLP_OUT = {
    "gpt2": "transformer.h.0.mlp.c_proj.weight",
    "gpt_neox": "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
}


@pytest.mark.parametrize("family", ["gpt2", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_analyses_work_on_the_run(tmp_path, capsys, family):
    make_run(hf_config(tmp_path, family, "capture.units=['*']", "corpus.validation_share=0.3"))
    uri = str(tmp_path / "run")
    commands = (
        ["info"],
        ["attribute"],
        ["attribute", "--level", "row", "--name", "rows"],
        ["attribute", "--evidence", "geometric-mean", "--name", "means"],
        ["behaviour", "--target", ".", "--confirm"],
        ["attribute"],
        ["ablate", "--only", f"{MLP_OUT[family]}:3,4"],
        ["ablate", "--level", "head", "--all", "--split", "validation", "--name", "heads"],
        ["attribute", "--level", "head", "--confirm", "--name", "heads"],
        ["attribute", "--confirm", "--name", "confirmed"],
        ["activations"],
        ["activations", "--of", "attention-entropy", "--name", "heads"],
        ["faithfulness", "--text", "train", "--neurons", "2"],
        ["report"],
        ["bigrams"],
        ["verify"],
    )
    for command, *extra in commands:
        assert main([command, uri, *extra]) == 0, capsys.readouterr().err
    assert f"{family} of transformers (random weights)" in capsys.readouterr().out
    with pytest.raises(RunError, match="has a Hugging Face model"):
        open_run(uri).model()


def test_a_neuron_s_outlying_weights_are_those_of_its_input(tmp_path):
    """GPT-2 stores weights [I, O]; attribution and tallies agree on which entries a neuron has."""
    make_run(hf_config(tmp_path, "gpt2", "capture.factors.enabled=true"))
    run = open_run(str(tmp_path / "run"))
    unit = "transformer.h.0.mlp.c_fc.weight"
    assert run.layout.shapes[unit] == (8, 32)
    assert tally_units(run)[unit] == 8
    datum = int(run.steps()["datums"][5][1])
    dense = run.gradient(5, datum, unit)
    np.testing.assert_allclose(
        run.neuron_gradient(5, datum, unit, 3), dense[3], rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(run.column(5, datum, unit, 3), dense[:, 3], rtol=1e-5, atol=1e-9)
    with pytest.raises(
        UnitError, match=r"c_fc\.weight\[8, :\]: does not exist: the unit is 8 × 32"
    ):
        run.neuron_gradient(5, datum, unit, 8)


def plan_of(config) -> StepPlan:
    config = complete_config(config)
    return StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))

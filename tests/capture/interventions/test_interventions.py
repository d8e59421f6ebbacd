"""Interventions: the laws hold for a run in which parts are suppressed and datums left out.

The reference of a suppressed head is a model whose weights that read the head are 0: the same
forward pass, and the same gradient of every other parameter.
"""

import numpy as np
import pytest
import torch
from tiny import contents, make_run, tiny_config
from tiny_hf import SETTINGS, hf_config
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.corpus.datums import load_corpus
from capture.engine.build import build_engine, complete_config
from capture.engine.left_out import LEFT_OUT, batch_of
from capture.engine.observer import to_device
from capture.engine.step_plan import StepPlan
from capture.errors import ConfigError
from capture.format.chain import read_segments, require_start
from capture.gradients.factored_algebra import dense
from capture.replay.segments import read_replayable_run, replay_segment
from capture.retraining.retrain import retrain
from capture.retraining.weighting import Weighting
from capture.store import Store
from capture.unrolled.states import backward_steps
from capture.unrolled.token_losses import twice_differentiable_losses

HEAD, NEURONS = "layers.0.self_attn:1", "layers.1.linear2.weight:2-4,7"
FIRST, END = 5, 19
WHEN = (f"intervention.first_step={FIRST}", f"intervention.end_step={END}")
SUPPRESSED = (f'intervention.suppress=["{HEAD}","{NEURONS}"]', *WHEN)
LEFT = (3, 20, 21)
WITHOUT = ("intervention.leave_out=[3,20-21]", *WHEN)
ALL = ("outliers", "tallies", "factors")
RECORDED = "capture.factors.enabled=true"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched")
    make_run(tiny_config(folder))
    return open_run(str(folder / "run"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with both interventions, recorded while it trained, and one of checkpoints alone."""
    folder = tmp_path_factory.mktemp("runs")
    both = (*SUPPRESSED, WITHOUT[0])
    make_run(tiny_config(folder, RECORDED, *both, name="recorded"))
    make_run(tiny_config(folder, "capture.record=checkpoints", *both, name="bare"))
    return str(folder / "recorded"), str(folder / "bare")


def plan_of(folder, *overrides):
    config = tiny_config(folder, *overrides)
    return StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))


# --- laws 1, 2 and 9 ------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), ("capture.loss_positions=last",)])
def test_captured_gradients_are_those_of_passes_of_one_datum_through_a_silenced_model(
    tmp_path, overrides
):
    """Law 2: the reference has neither hooks nor batches."""
    plan = plan_of(tmp_path, *SUPPRESSED, WITHOUT[0], *overrides)
    engine = build_engine(plan, ("factors",))
    planned = [*plan.planned_steps(0)][FIRST:END]
    planned = next(one for one in planned if set(one.datum_N) & set(LEFT))
    batch = batch_of(plan, *to_device(plan.corpus.train, engine.device), planned)
    reference = build_engine(plan, ()).model.train()
    trained = dict(reference.named_parameters())
    with torch.no_grad():
        trained["layers.0.self_attn.out_proj.weight"][:, 4:8] = 0
        trained["layers.1.linear2.weight"][:, [2, 3, 4, 7]] = 0
    step = engine.step(*batch, step=planned.step, epoch=planned.epoch)
    recorded = step.last.factors if step.last else step.factors
    scored = slice(-1, None) if step.last else slice(None)
    total = 0.0
    for slot, datum in enumerate(planned.datum_N):
        target_T = torch.from_numpy(plan.corpus.train.target_NT[datum]).long()
        token_1T = torch.from_numpy(plan.corpus.train.token_NT[datum]).long()[None]
        logit_TV = reference(token_1T, engine.masks([slot], planned.step, 8))[0]
        weight = 0.0 if datum in LEFT else 1.0
        loss = weight * F.cross_entropy(logit_TV[scored], target_T[scored], reduction="sum") / 32
        reference.zero_grad()
        loss.backward()
        total += weight * float(F.cross_entropy(logit_TV, target_T, reduction="sum").detach() / 32)
        for name, uses in recorded.items():
            gradient = trained[name].grad
            assert gradient is not None
            wanted = gradient.clone()
            if name == "layers.0.self_attn.out_proj.weight":
                wanted[:, 4:8] = 0
            if name == "layers.1.linear2.weight":
                wanted[:, [2, 3, 4, 7]] = 0
            own = [use.map_tensors(lambda x, slot=slot: x[slot : slot + 1]) for use in uses]
            found = dense(own, wanted.shape)[0]
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-7), (name, datum)
    assert step.loss == pytest.approx(total, rel=1e-5)


def test_a_run_is_that_of_the_untouched_until_the_intervention(runs, untouched):
    """Law 1 is checked at every step of both runs while they train."""
    found, wanted = open_run(runs[0]).steps(), untouched.steps()
    assert (found["audit_error"] < 1e-5).all()
    assert found["loss"][:FIRST].equals(wanted["loss"][:FIRST])
    assert found["loss"][FIRST] != wanted["loss"][FIRST]
    assert found["datums"].map(list).equals(wanted["datums"].map(list))


def test_nothing_suppressed_moves_and_no_datum_left_out_moves_anything(runs):
    run, unit = open_run(runs[0]), "layers.1.linear2.weight"
    rows = run.steps()["datums"]
    for step in range(run.steps_done):
        for datum in rows[step]:
            gradient = run.gradient(step, datum, unit)
            inside = FIRST <= step < END
            assert gradient.any() == (not (inside and datum in LEFT))
            if inside:
                assert not gradient[:, [2, 3, 4, 7]].any()


def test_leaving_out_equals_retraining_with_weights_0(untouched, tmp_path):
    make_run(tiny_config(tmp_path, *WITHOUT))
    weight_D = np.ones(untouched.num_datums)
    weight_D[list(LEFT)] = 0
    run = read_replayable_run(untouched.store)
    wanted = retrain(run, Weighting(weight_D, range(FIRST, END)))
    found = open_run(str(tmp_path / "run")).checkpoint()
    for name, own in wanted.items():
        assert (found[name] - own).norm() < 1e-4 * own.norm() + 1e-6, name


# --- laws 3, 4 and 13 -----------------------------------------------------------------------------


def test_replay_adds_the_bytes_that_training_records(runs):
    recorded, bare = runs
    store = Store(bare)
    replayable = read_replayable_run(store)
    for segment in range(len(read_segments(store))):
        assert replay_segment(replayable, segment, ALL).difference == 0
    found, wanted = contents(bare), contents(recorded)
    for key, data in wanted.items():
        if not key.startswith("steps/"):  # without audit errors in the bare run
            assert found[key] == data, key


def test_unrolled_steps_repeat_the_losses_and_give_no_share_to_what_is_left_out(runs):
    run = open_run(runs[1])
    store = Store(run.uri)
    markers = [require_start(store), *read_segments(store)]
    rows = run.steps()
    for step in backward_steps(read_replayable_run(store), markers, range(28), graphs=True):
        share_N = step.loss.shares(step.before.weights).sum(1)
        assert float(share_N.detach().sum()) == pytest.approx(rows["loss"][step.step], rel=1e-5)
        inside = FIRST <= step.step < END
        for slot, datum in enumerate(step.planned.datum_N):
            assert bool(share_N[slot] == 0) is (inside and datum in LEFT)


def test_second_derivatives_without_datums_that_are_left_out():
    generator = torch.Generator().manual_seed(0)
    logit_PV = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target_P = torch.tensor([1, LEFT_OUT, 3, 0, LEFT_OUT])
    vector_PV = torch.randn(5, 4, generator=generator, dtype=torch.float64)

    def product(losses):
        weight_P = torch.ones(5, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad((losses * weight_P).sum(), logit_PV, create_graph=True)
        return torch.autograd.grad(first, [logit_PV, weight_P], vector_PV)

    wanted = product(F.cross_entropy(logit_PV, target_P, reduction="none"))
    found = product(twice_differentiable_losses(logit_PV, target_P))
    for own, other in zip(found, wanted, strict=True):
        assert torch.allclose(own, other, atol=1e-12)


# --- other models ---------------------------------------------------------------------------------


def test_heads_of_a_hugging_face_model_are_suppressed(tmp_path):
    config = hf_config(tmp_path, "gpt2", 'intervention.suppress=["transformer.h.0.attn:1"]')
    config = complete_config(config)
    plan = StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))
    engine = build_engine(plan, ())
    assert engine.suppression is not None
    (mask_C,) = engine.suppression.mask_C.values()
    assert list(engine.suppression.mask_C) == ["transformer.h.0.attn.c_proj"]
    heads = SETTINGS["gpt2"]["n_head"]
    assert mask_C.view(heads, -1).all(1).tolist() == [head == 1 for head in range(heads)]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["intervention.suppress=[layers.0.self_attn:3]"], "it has heads 0 to 2"),
        (["intervention.suppress=[layers.5.self_attn]"], "'layers.5.self_attn', which is no"),
        (["intervention.suppress=['layers.0.self_attn:x']"], "Write numbers and ranges"),
        (["intervention.suppress=[layers.0.self_attn:1,2]"], "entries with a comma in quotes"),
        (["intervention.suppress=[decoder.weight]"], "predictions no longer depend on the datum"),
        (["intervention.suppress=['*.weight']"], "predictions no longer depend on the datum"),
        (["intervention.suppress=['layers.0.self_attn:0-999999999']"], "it has heads 0 to 2"),
        (["intervention.leave_out=[9999]"], "there is no training datum 9999"),
        (["intervention.leave_out=[0-999999999]"], "there is no training datum 999999999"),
        (["intervention.leave_out=[0-58]"], "leaves out every training datum"),
        (["intervention.first_step=3"], "nothing is suppressed or left out"),
        (["intervention.leave_out=[1]", "intervention.first_step=28"], "the run has 28 steps"),
        (["intervention.leave_out=[1]", "intervention.end_step=29"], "the run has 28 steps"),
        ([*WITHOUT, "intervention.first_step=19"], "must be above intervention.first_step"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(tmp_path, overrides, text):
    with pytest.raises(ConfigError) as caught:
        build_engine(plan_of(tmp_path, *overrides), ())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parts", ["decoder.weight:0-10", "layers.*"])
def test_parts_are_suppressed_as_long_as_something_reaches_the_predictions(tmp_path, parts):
    engine = build_engine(plan_of(tmp_path, f'intervention.suppress=["{parts}"]'), ())
    assert engine.suppression is not None


def test_compare_says_what_was_done_and_where_the_runs_part(runs, untouched):
    from analysis.transitions.runs.compare import CompareConfig, compare_runs
    from analysis.transitions.runs.sentences import summarise

    found = compare_runs([untouched, open_run(runs[1])], CompareConfig(draws=99))
    done = f"suppressed {HEAD}, {NEURONS} and datums left out 3, 20-21, from step 5 to step 18"
    assert found.runs["group"].tolist() == ["untouched", done]
    text = " ".join(summarise(found))
    assert f"part in step {FIRST}, where the loss differs though the datums of both are" in text

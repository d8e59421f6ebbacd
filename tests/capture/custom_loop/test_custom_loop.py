"""Recording a custom training loop: the laws hold, and the loop itself does not change."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from custom_loops import TOP, Small, logits, loss_of, model_and_plan, tokens, uri
from tiny import make_run, tiny_config
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.maintenance.verify import verify
from capture.store import Store

Optimizer = torch.optim.Optimizer


def by_groups(model: nn.Module) -> Optimizer:
    """AdamW without decay for vectors, as is usual, and with another learning rate for them."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "lr": 3e-2}]
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.5),
    "decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.5, weight_decay=0.01),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9),
    "nesterov": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.2, momentum=0.9, nesterov=True, foreach=True
    ),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, weight_decay=0.01),
    "adamw": by_groups,
    "decoupled": lambda m: torch.optim.Adam(
        m.parameters(), lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    ),
}


def train(model: nn.Module, optimizer: Optimizer, *, steps: int = 7, pieces: int = 1) -> None:
    """A loop with clipping, a schedule, micro-batches of unequal length, and evaluations."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    token_NT = tokens()
    for step in range(steps):
        batch_NT = token_NT[np.arange(4 * step, 4 * step + 4) % len(token_NT)]
        for number, piece_NT in enumerate(batch_NT.chunk(pieces)):
            (loss_of(model, piece_NT[:, number:]) / pieces).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            loss_of(model, token_NT)
        loss_of(model, token_NT)  # an evaluation that forgets no_grad


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("pieces", [1, 2])
def test_shifts_and_carry_add_up_to_the_update_for_every_optimizer(tmp_path, name, pieces):
    model = Small()
    optimizer = OPTIMIZERS[name](model)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP, segment_steps=3):
        train(model, optimizer, pieces=pieces)
    run = open_run(uri(tmp_path))
    steps = run.steps()
    assert steps["step"].tolist() == list(range(7))
    assert [marker.end_step for marker in run.segments] == [3, 6, 7]
    assert 0 < steps["audit_error"].max() < 1e-5
    assert steps["clip"].between(0, 1, inclusive="neither").all()
    assert np.concatenate(steps["datums"].to_numpy()).tolist() == list(range(28))
    assert len(run.shifts()) == 28 * 20
    assert verify(Store(uri(tmp_path))) == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_recording_leaves_training_bit_identical(tmp_path, name):
    one, other = Small(), Small()
    train(one, OPTIMIZERS[name](one), pieces=2)
    optimizer = OPTIMIZERS[name](other)
    with record(other, optimizer, run=uri(tmp_path), outliers=TOP):
        train(other, optimizer, pieces=2)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    train(other, optimizer, steps=1)
    assert len(open_run(uri(tmp_path)).steps()) == 7
    kept = open_run(uri(tmp_path)).checkpoint()
    assert all(torch.equal(kept[name], p) for name, p in one.named_parameters())


SGD = ["training.epochs=1", "training.learning_rate=0.5", "model.dropout=0", "training.clip=100"]
ADAMW = ["training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.clip=0.2"]


@pytest.mark.parametrize("overrides", [[], ADAMW], ids=["sgd", "clipped adamw"])
def test_a_custom_loop_records_the_same_rows_as_capture(tmp_path, overrides):
    config = tiny_config(tmp_path, *SGD, *overrides, name="capture")
    make_run(config)
    model, corpus, plan = model_and_plan(config)
    training = config.training
    if overrides:
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.0)
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
    token_NT = torch.from_numpy(corpus.train.token_NT).long()
    target_NT = torch.from_numpy(corpus.train.target_NT).long()
    whole_NT = np.hstack([corpus.train.token_NT, corpus.train.target_NT[:, -1:]])
    with record(
        *(model, optimizer),
        run=uri(tmp_path, "custom"),
        units=["layers.*"],
        datums=whole_NT,
        vocabulary=corpus.vocabulary.tokens,
        outliers=config.capture.outliers,
        segment_steps=8,
    ) as recorder:
        for planned in plan.planned_steps(0):
            recorder.datums(planned.datum_N)
            now = torch.from_numpy(planned.datum_N)
            logit_NTV = logits(model, token_NT[now])
            F.cross_entropy(logit_NTV.flatten(0, 1), target_NT[now].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()
            optimizer.zero_grad()
    assert_same_rows(
        open_run(uri(tmp_path, "custom")), open_run(uri(tmp_path, "capture")), overrides
    )


def assert_same_rows(custom: Run, captured: Run, clipped: list[str]) -> None:
    """Equal tables; with clipping, whose factor is estimated, equal to rounding."""
    exactly = ["epoch", "batch", "datum_ix", "unit", "index", "datum", "step", "datum_id"]
    found, wanted = custom.shifts(), captured.shifts()
    key = ["step", "datum_ix", "unit", "index"]
    if not clipped:
        pd.testing.assert_frame_equal(found, wanted)
        return
    both = found.merge(wanted, on=key, suffixes=("", "_capture"))
    assert len(both) > 0.999 * len(wanted)
    np.testing.assert_allclose(both["diff"], both["diff_capture"], rtol=1e-4, atol=1e-9)
    columns = ["learning_rate", "gradient_norm", "clip", "loss"]
    left, right = custom.steps()[columns], captured.steps()[columns]
    np.testing.assert_allclose(left, right, rtol=1e-5)
    assert (both["datum"] == both["datum_capture"]).all()
    assert set(exactly) <= set(found)


# --- what loops do --------------------------------------------------------------------------------


def one_step(model: nn.Module, optimizer: Optimizer, token_NT: Tensor) -> None:
    loss_of(model, token_NT).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_discarded_gradients_discard_their_datums(tmp_path):
    model = Small()
    optimizer = OPTIMIZERS["adam"](model)
    with record(model, optimizer, run=uri(tmp_path), datums=12, outliers=TOP) as recorder:
        for set_to_none in (True, False):
            recorder.datums(range(0, 4))
            loss_of(model, tokens()[:4]).backward()
            optimizer.zero_grad(set_to_none=set_to_none)
        recorder.datums([7, 9])
        one_step(model, optimizer, tokens()[[7, 9]])
    assert open_run(uri(tmp_path)).steps()["datums"][0].tolist() == [7, 9]


@pytest.mark.parametrize("pieces", [1, 2])
def test_zero_grad_after_the_forward_pass_discards_earlier_datums(tmp_path, pieces):
    """The order is forward, zero_grad, backward, and a scaler skips the step that overflowed."""
    model = Small()
    optimizer = OPTIMIZERS["adam"](model)
    with record(model, optimizer, run=uri(tmp_path), datums=12, outliers=TOP) as recorder:
        for number, overflow in enumerate([False, True, False]):
            for piece in range(pieces):
                ids = [number, 3 + number, 6 + piece]
                recorder.datums(ids)
                loss = loss_of(model, tokens()[ids])
                if not piece:
                    optimizer.zero_grad()
                (loss * (torch.inf if overflow else 1.0)).backward()
            if not overflow:
                optimizer.step()
    steps = open_run(uri(tmp_path)).steps()
    wanted = [(step, 3 + step, 6 + piece) for step in (0, 2) for piece in range(pieces)]
    found = np.concatenate(steps["datums"].to_numpy())
    assert list(map(tuple, found.reshape(-1, 3).tolist())) == wanted
    assert steps["audit_error"].max() < 1e-5


def test_a_scaled_loss_gives_the_same_shifts(tmp_path):
    for name, scale in (("plain", 1.0), ("scaled", 2.0**16)):
        model = Small()
        optimizer = OPTIMIZERS["momentum"](model)
        with record(model, optimizer, run=uri(tmp_path, name), outliers=TOP):
            for _ in range(3):
                (loss_of(model, tokens()) * scale).backward()
                for parameter in model.parameters():
                    parameter.grad = None if parameter.grad is None else parameter.grad / scale
                optimizer.step()
                optimizer.zero_grad()
    plain, scaled = (open_run(uri(tmp_path, name)) for name in ("plain", "scaled"))
    np.testing.assert_allclose(plain.shifts()["diff"], scaled.shifts()["diff"], rtol=1e-5)
    assert scaled.steps()["clip"].to_numpy() == pytest.approx(2.0**-16, rel=1e-5)


def test_backward_may_pass_through_one_graph_twice(tmp_path):
    model = Small()
    optimizer = OPTIMIZERS["sgd"](model)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP):
        logit_NTV = model(tokens()[:, :-1])
        logit_NTV.square().mean().backward(retain_graph=True)
        logit_NTV[:, -1].logsumexp(-1).sum().backward()
        optimizer.step()
    steps = open_run(uri(tmp_path)).steps()
    assert steps["audit_error"][0] < 1e-6
    assert len(steps["datums"][0]) == 12


def test_autocast_to_bfloat16_is_recorded(tmp_path):
    model = Small()
    optimizer = OPTIMIZERS["adamw"](model)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP):
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, tokens())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert open_run(uri(tmp_path)).steps()["audit_error"].between(1e-5, 0.02).all()


def test_shifts_from_factors_add_up_to_the_update(tmp_path):
    model = Small()
    optimizer = OPTIMIZERS["sgd"](model)
    before = model.layer.weight.detach().clone()
    factors = FactorConfig(enabled=True)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP, factors=factors):
        one_step(model, optimizer, tokens()[:4])
    run = open_run(uri(tmp_path))
    total = sum(run.shift(0, datum, "layer.weight") for datum in range(4))
    change = (model.layer.weight.detach() - before).numpy()
    np.testing.assert_allclose(total, change, atol=1e-6)


def test_images_are_datums_with_one_position(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    optimizer = OPTIMIZERS["momentum"](model)
    names = [f"image {i}" for i in range(6)]
    with record(model, optimizer, run=uri(tmp_path), datums=names, outliers=TOP) as recorder:
        for _ in range(2):
            recorder.datums(torch.tensor([5, 3, 1]))
            F.cross_entropy(model(torch.randn(3, 1, 8, 8)), torch.tensor([0, 1, 2])).backward()
            optimizer.step()
            optimizer.zero_grad()
    shifts = open_run(uri(tmp_path)).shifts(unit="0.weight")
    assert set(shifts["datum"]) == {"image 1", "image 3", "image 5"}
    assert set(shifts["position"]) == {0}


def test_a_hugging_face_model_with_labels_padding_and_tied_weights(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 11}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    optimizer = OPTIMIZERS["adamw"](model)
    token_NT = tokens()
    with record(model, optimizer, run=uri(tmp_path), datums=token_NT, outliers=TOP) as recorder:
        for ids in (range(0, 4), range(4, 10)):
            recorder.datums(list(ids))
            now_NT = token_NT[list(ids)]
            model(input_ids=now_NT, labels=now_NT).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    run = open_run(uri(tmp_path))
    assert run.steps()["audit_error"].max() < 1e-5
    assert "transformer.wte.weight" in run.layout.shapes
    assert len(run.layout.transposed) == 8  # neurons of these are rows
    assert run.shifts()["position"].max() < 5

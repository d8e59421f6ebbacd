"""Path influence from stored factors: the numbers of replay, law 12 in custom loops, errors."""

import functools

import numpy as np
import pytest
import torch
from custom_loops import Small, V, loss_of, tokens
from path_steps import path_steps
from tiny_run import make_run

from analysis.influence.config import InfluenceConfig
from analysis.influence.influence import compute_influence
from analysis.influence.queries.parsing import build_queries
from analysis.influence.stored_steps import stored_steps
from analysis.influence.sweeps import PathMethod
from analysis.influence.tables import Influence
from analysis.jobs.influence_wording import FROM_FACTORS, REPLAYED, explanation
from analysis.run.run import Run, open_run
from capture.errors import CaptureError
from cluster.cli import main
from ontogeny import FactorConfig, record

SHORT = (
    *("training.epochs=1", "training.batch=8", "model.dropout=0.1", "capture.segment_steps=4"),
    *("capture.factors.enabled=true", "capture.outliers.enabled=false", 'capture.units=["*"]'),
)
SETTINGS = {
    "clipped": ("training.learning_rate=2", "training.clip=0.2"),
    "nesterov": (
        *("training.learning_rate=0.2", "training.optimizer.momentum=0.9"),
        *("training.optimizer.nesterov=true", "training.optimizer.weight_decay=0.1"),
    ),
    "adamw": (
        *("training.optimizer.kind=adamw", "training.learning_rate=0.02", "training.clip=0.5"),
        "training.optimizer.weight_decay=0.3",
    ),
}
ASKED = ("datum:validation:0", "neuron:layers.1.linear2.weight:3@w5")
WORDS = [f"w{number}" for number in range(V)]


@functools.cache
def run_of(kind: str) -> Run:
    return open_run(make_run(f"memory://stored-steps/{kind}", *SHORT, *SETTINGS[kind]))


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("nesterov", range(2, 5)),
        ("adamw", range(6)),
        pytest.param("clipped", range(6), marks=pytest.mark.slow),
        pytest.param("nesterov", range(6), marks=pytest.mark.slow),
        pytest.param("adamw", range(1, 6), marks=pytest.mark.slow),
    ],
)
def test_factors_give_the_numbers_of_replay(kind: str, steps: range) -> None:
    run = run_of(kind)
    queries = build_queries(run, ASKED)
    replayed = list(path_steps(run, queries, steps))
    sweep = PathMethod.begin(run, queries, (), from_factors=True)
    for found, wanted in zip(sweep.steps(steps, 2**30), replayed, strict=True):
        assert found.step == wanted.step
        np.testing.assert_array_equal(found.datum_N, wanted.datum_N)
        wanted_QN = wanted.influence_QNT.sum(2)
        scale = np.abs(wanted_QN).max()
        np.testing.assert_allclose(found.influence_QNT[:, :, 0], wanted_QN, atol=1e-4 * scale)
        for name in ("before", "after", "decay", "inherited"):
            own_Q = getattr(wanted, f"{name}_Q")
            np.testing.assert_allclose(found.columns[name], own_Q, rtol=1e-4, atol=1e-6)


def test_the_answer_says_where_its_steps_come_from() -> None:
    run = run_of("nesterov")
    queries = build_queries(run, ASKED[:1])
    for factors, sentence in ((True, FROM_FACTORS), (False, REPLAYED)):
        config = InfluenceConfig(method="path", factors=factors, first_step=4)
        found = compute_influence(run, queries, config, resumable=False)
        assert found.positions.empty == factors
        (row,) = found.queries.to_dict("records")
        assert row["from_factors"] == factors
        assert sentence in " ".join(explanation(row, found.checks))


# --- custom training loops ------------------------------------------------------------------------


def recorded(kind: str = "adam", *, factors: bool = True, frozen: bool = False) -> str:
    """Return the URI of seven steps of a loop of one's own; ``frozen``: its norm is not trained."""
    return recording(kind, factors, frozen)


@functools.cache
def recording(kind: str, factors: bool, frozen: bool) -> str:
    uri, token_NT, model = f"memory://stored-steps/own/{kind}{factors}{frozen}", tokens(), Small()
    chosen = list(model.parameters())
    if frozen:
        model.norm.requires_grad_(False)
    optimizer = {
        "adam": lambda: torch.optim.AdamW(chosen, lr=0.02, weight_decay=0.1),
        "nadam": lambda: torch.optim.NAdam(chosen, lr=0.02),
        "sgd": lambda: torch.optim.SGD(chosen, lr=0.5, momentum=0.9, dampening=0.2),
    }[kind]()
    how = {"vocabulary": WORDS, "factors": FactorConfig(enabled=factors), "segment_steps": 4}
    rng = np.random.default_rng(0)
    with record(model, optimizer, run=uri, datums=token_NT.tolist(), **how) as seen:
        for _ in range(7):
            datum_N = rng.choice(len(token_NT), 4, replace=False)
            seen.datums(datum_N.tolist())
            loss_of(model, token_NT[datum_N]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
            optimizer.step()
            optimizer.zero_grad()
    return uri


def answer(run: Run, *asked: str, first_step: int = 0, units: bool = False) -> Influence:
    config = InfluenceConfig(method="path", first_step=first_step, units=units)
    return compute_influence(run, build_queries(run, list(asked)), config)


@pytest.mark.parametrize(
    ("kind", "frozen", "first_step"),
    [("adam", False, 0), ("nadam", False, 3), ("sgd", False, 0), ("sgd", True, 5)],
)
def test_influences_in_a_loop_of_ones_own_sum_to_the_change(
    kind: str, frozen: bool, first_step: int
) -> None:
    """Reference: the model's own losses at the two checkpoints."""
    run = open_run(recorded(kind, frozen=frozen), model=lambda: Small(seed=3))
    found = answer(run, "datum:train:2", "token:w3", "norm:layer.weight:1", first_step=first_step)
    rows = found.queries
    parts = rows["datums"] + rows["decay"] + rows["inherited"]
    np.testing.assert_allclose(parts, rows["after"] - rows["before"], atol=1e-5)
    assert (rows["incompleteness"] < 1e-4).all()
    assert bool(rows["inherited"].any()) == (first_step > 0)
    model = Small()
    for column, step in (("before", first_step), ("after", 7)):
        if step in (0, 7):
            model.load_state_dict(run.weights(step))
            wanted = loss_of(model, tokens()[2:3]).item()
            assert rows[column][0] == pytest.approx(wanted, rel=1e-5)
            wanted = model.layer.weight[:, 1].norm().item()
            assert rows[column][2] == pytest.approx(wanted, rel=1e-5)


def test_questions_about_weights_need_no_model(capsys) -> None:
    uri = recorded("sgd")
    found = answer(open_run(uri), "parameter:layer.weight:7", units=True)
    assert found.queries["incompleteness"][0] < 1e-4
    by_unit = found.units.set_index("unit")["influence"]
    assert by_unit["layer.weight"] == pytest.approx(found.queries["datums"][0])
    np.testing.assert_allclose(by_unit.drop("layer.weight"), 0, atol=1e-6)
    assert main(["influence", uri, "parameter:layer.weight:0", "--method", "path"]) == 0
    assert FROM_FACTORS in " ".join(capsys.readouterr().out.split())


def test_a_sweep_over_factors_resumes() -> None:
    run = open_run(recorded("sgd"))
    queries = build_queries(run, ["norm:layer.weight:1"])
    begin = functools.partial(PathMethod.begin, run, queries, (), from_factors=True)
    whole = list(begin().steps(range(7), 2**30))
    late, again = begin(), begin()
    list(late.steps(range(4, 7), 2**30))
    again.resume(late.encode(), "memory")
    for one, other in zip(again.steps(range(4), 2**30), whole[3:], strict=True):
        np.testing.assert_array_equal(one.influence_QNT, other.influence_QNT)


# --- errors ---------------------------------------------------------------------------------------


def test_what_is_missing_is_said_in_one_line(capsys) -> None:
    for uri, asked, wanted in (
        (recorded(factors=False), "norm:layer.weight:1", "Record factors of all steps: factors="),
        (recorded(), "datum:train:2", "Pass it: open_run(…, model=…), or --model"),
    ):
        assert main(["influence", uri, asked, "--method", "path"]) == 2
        error = capsys.readouterr().err
        assert wanted in error
        assert error.count("\n") == 1


def test_a_bound_on_memory_and_uncaptured_parameters_are_refused() -> None:
    run = open_run(recorded())
    with pytest.raises(CaptureError, match=r"max_bytes: got 1, must be at least .*for the 3 steps"):
        next(stored_steps(run, range(7), 1))
    some = (*SHORT, *SETTINGS["clipped"], 'capture.units=["layers.*.linear2.weight"]')
    partial = open_run(make_run("memory://stored-steps/partial", *some))
    wanted = r"has no factors of \S+, which training changed\. Leave out --factors"
    with pytest.raises(CaptureError, match=wanted):
        next(stored_steps(partial, range(6), 2**30))


@pytest.mark.parametrize(("method", "wanted"), [("unrolled", "is for method path, not unrolled")])
def test_factors_are_for_path_influence(method: str, wanted: str) -> None:
    with pytest.raises(CaptureError, match=wanted):
        InfluenceConfig(method=method, factors=True)

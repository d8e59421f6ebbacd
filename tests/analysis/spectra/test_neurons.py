"""When neurons were moved, and loads of datums: nulls that hold, and planted truths."""

import numpy as np
import pytest
import torch

from analysis.spectra.loads import StepLoads, along, strongest_datums
from analysis.spectra.neurons import NeuronGroups, group_sums, learning_times, time_moments
from analysis.spectra.pieces import Part
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import Factor
from capture.gradients.layout import Layout

LAYOUT = Layout(
    {
        "layers.0.linear1.weight": (12, 8),
        "layers.0.linear1.bias": (12,),
        "layers.0.self_attn.out_proj.weight": (8, 8),
    }
)


def test_groups_are_inputs_of_mlps_rows_of_weights_and_whole_others():
    groups = NeuronGroups.of(LAYOUT)
    counted = groups.frame.groupby("level", sort=False)["entries"].agg(["count", "sum"])
    assert counted["count"].to_dict() == {"neuron": 8, "unit": 1, "row": 8}
    assert counted["sum"].sum() == LAYOUT.size
    assert groups.group_P[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    piece = (Part("layers.0.linear1.bias", 3, 5), Part("layers.0.self_attn.out_proj.weight", 0, 9))
    assert groups.of_piece(piece).tolist() == [8, 8, *[9] * 8, 10]
    value_PK = np.random.default_rng(0).normal(size=(LAYOUT.size, 2))
    sums_GK = group_sums(value_PK, groups.group_P, len(groups.frame))
    np.testing.assert_allclose(sums_GK[8], value_PK[96:108].sum(0))
    np.testing.assert_allclose(sums_GK.sum(0), value_PK.sum(0))


def test_random_directions_lie_where_the_null_says_and_a_late_neuron_does_not():
    rng, step_S = np.random.default_rng(1), np.arange(50)
    groups = NeuronGroups.of(LAYOUT)
    length_S = np.linspace(3, 1, 50)
    found, late = [], []
    for _ in range(40):
        row_SP = rng.normal(size=(50, LAYOUT.size))
        row_SP *= (length_S / np.linalg.norm(row_SP, axis=1))[:, None]
        for kept in (found, late):
            moment_G3 = group_sums(time_moments(row_SP, step_S), groups.group_P, 17)
            square_S = np.square(row_SP).sum(1)
            kept.append(learning_times(groups.frame, moment_G3, square_S, step_S))
            row_SP[30:, groups.group_P == 2] *= 3
    z = np.array([one["z"] for one in found])
    assert abs(z.mean()) < 0.15
    assert z.std() == pytest.approx(1, abs=0.1)
    assert (np.abs(z) > 2).mean() == pytest.approx(0.05, abs=0.03)
    assert np.mean([one["z"][2] for one in late]) > 5
    assert found[0]["share"].sum() == pytest.approx(1)


def test_a_group_that_never_moved_has_no_time():
    groups, moment_G3 = NeuronGroups.of(LAYOUT), np.zeros((17, 3))
    moment_G3[1:] = (1, 2, 5)
    never = learning_times(groups.frame, moment_G3, np.full(4, 4.0), np.arange(4))
    assert never[["centre", "spread", "z"]].head(1).isna().to_numpy().all()
    assert (never["centre"][1:] == 2).all()
    assert (never["spread"][1:] == 1).all()


# --- loads of datums ------------------------------------------------------------------------------


def test_a_load_is_the_product_with_the_dense_gradient():
    torch.manual_seed(0)
    delta_NTO, a_NTI = torch.randn(3, 4, 5), torch.randn(3, 4, 6)
    token_NT = torch.randint(0, 7, (3, 4))
    cases: list[tuple[list[Factor], tuple[int, ...]]] = [
        ([Factor("outer", delta_NTO, a_NTI)], (5, 6)),
        ([Factor("outer", delta_NTO, a_NTI, transposed=True)], (6, 5)),
        ([Factor("sum", delta_NTO)] * 2, (5,)),
        ([Factor("scale", delta_NTO, a_NTI[..., :5])], (5,)),
        ([Factor("rows", delta_NTO, token_NT=token_NT)], (7, 5)),
    ]
    for uses, shape in cases:
        direction = torch.randn(shape)
        wanted_N = (dense(uses, shape) * direction).flatten(1).sum(1)
        torch.testing.assert_close(along(uses, direction), wanted_N, rtol=1e-4, atol=1e-4)


def test_loads_dealt_at_random_have_the_deviation_of_the_null_and_a_planted_datum_has_not():
    rng = np.random.default_rng(2)
    steps = []
    for step in range(600):
        datum_N = rng.permutation(60)[:6].tolist()
        load_NK = rng.normal(0.5, 1, (6, 2))
        if 7 in datum_N:
            load_NK[datum_N.index(7), 1] += 1.5
        steps.append(StepLoads(step, datum_N, load_NK))
    table = strongest_datums(steps, 60, 60)
    first = table[table["direction"] == 0]
    assert first["z"].std() == pytest.approx(1, abs=0.25)
    assert first["steps"].sum() == 600 * 6
    second = table[table["direction"] == 1]
    assert second["datum"].iloc[0] == 7
    assert second["z"].iloc[0] > 4
    assert len(strongest_datums(steps, 70, 65)) == 2 * 60

"""Law 8: outliers are the top k of the dense tensor, each with its strongest position."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import top_k, top_k_of_units
from torch import Tensor

from capture.errors import ConfigError
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.shifts.outliers import OutlierConfig, Outliers, find_outliers, largest_indices
from capture.shifts.shift_buffer import ShiftBuffer

CPU = torch.device("cpu")
SCALE = -0.5


@dataclass
class Case:
    """Random factors, and the dense shifts computed from them."""

    factors: Factors
    layout: Layout
    shift_NP: np.ndarray


def make_case(seed: int, batch: int, *, levels: int | None = None, uses: int = 1) -> Case:
    """``levels``: entries are small whole numbers, so that many shifts are equal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if levels is None:
            return torch.randn(*shape, generator=generator)
        return torch.randint(-levels, levels + 1, shape, generator=generator).float()

    T, shapes = 5, {"a.weight": (9, 13), "a.bias": (9,), "n.weight": (7,), "b.weight": (16, 8)}
    factors: Factors = {}
    for name, shape in shapes.items():
        kind = "outer" if len(shape) == 2 else "scale" if name == "n.weight" else "sum"
        factors[name] = [
            Factor(
                kind,
                draw(batch, T, shape[0]),
                None if kind == "sum" else draw(batch, T, shape[-1]),
            )
            for _ in range(uses)
        ]
    parts = [sum(dense(use) for use in factors[name]) for name in shapes]
    shift_NP = SCALE * np.concatenate([np.asarray(p).reshape(batch, -1) for p in parts], axis=1)
    return Case(factors, Layout(shapes), shift_NP)


def dense(use: Factor) -> np.ndarray:
    if use.a_NTI is None:
        return use.delta_NTO.sum(1).numpy()
    if use.kind == "scale":
        return (use.delta_NTO * use.a_NTI).sum(1).numpy()
    return np.einsum("nto,nti->noi", use.delta_NTO, use.a_NTI)


def find(case: Case, k: int, scope: str = "datum", pieces: int | None = None) -> Outliers:
    batch = len(case.shift_NP)
    buffer = ShiftBuffer(case.layout, pieces or batch, CPU)
    config = OutlierConfig(k=k, scope=scope)  # pyright: ignore[reportArgumentType]
    return find_outliers(buffer, case.factors, SCALE, config)


def pairs(outliers: Outliers) -> list[tuple[int, int]]:
    return list(zip(outliers.slot_M.tolist(), outliers.column_M.tolist(), strict=True))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 6),
    k=st.integers(1, 261),
    levels=st.sampled_from([1, 2, 5]),
    uses=st.integers(1, 2),
)
def test_outliers_of_each_datum_are_the_top_k_with_ties_to_the_lowest_column(
    seed, batch, k, levels, uses
):
    case = make_case(seed, batch, levels=levels, uses=uses)
    outliers = find(case, k)
    assert pairs(outliers) == top_k(case.shift_NP, k)
    found = case.shift_NP[outliers.slot_M, outliers.column_M]
    np.testing.assert_array_equal(outliers.shift_M, found)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 6), k=st.integers(1, 261))
def test_outliers_of_a_step_are_the_top_k_over_its_datums(seed, batch, k):
    case = make_case(seed, batch, levels=2)
    found = pairs(find(case, k, "step"))
    wanted = top_k(case.shift_NP.reshape(1, -1), k)
    assert found == [divmod(flat, case.layout.size) for _, flat in wanted]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 6),
    k=st.integers(1, 128),
    levels=st.sampled_from([1, 2, 5]),
    uses=st.integers(1, 2),
)
def test_outliers_of_each_unit_are_its_top_k_of_each_datum(seed, batch, k, levels, uses):
    case = make_case(seed, batch, levels=levels, uses=uses)
    outliers = find(case, k, "unit")
    assert pairs(outliers) == top_k_of_units(case.shift_NP, k, case.layout.sizes)
    found = case.shift_NP[outliers.slot_M, outliers.column_M]
    np.testing.assert_array_equal(outliers.shift_M, found)


@pytest.mark.parametrize("scope", ["datum", "step", "unit"])
def test_the_rows_of_a_step_are_known_before_it_is_taken(scope):
    case = make_case(3, 4)
    for k in (1, 20, 128):
        config = OutlierConfig(k=k, scope=scope)
        rows = config.rows_of_step(case.layout.sizes, 4)
        assert rows == len(find(case, k, scope).slot_M)


@pytest.mark.parametrize("scope", ["datum", "step", "unit"])
@pytest.mark.parametrize("pieces", [1, 2, 4, 5])
def test_a_batch_in_parts_gives_the_same_outliers(scope, pieces):
    case = make_case(3, 7, levels=2)
    whole, parts = find(case, 40, scope), find(case, 40, scope, pieces)
    assert pairs(whole) == pairs(parts)
    assert torch.equal(whole.shift_M, parts.shift_M)
    assert torch.equal(whole.position_M, parts.position_M)


@pytest.mark.parametrize("uses", [1, 2])
def test_the_position_is_the_one_that_contributes_most(uses):
    case = make_case(1, 4, uses=uses)
    outliers = find(case, 30)
    offsets = np.array(case.layout.offsets)
    for (slot, column), position in zip(pairs(outliers), outliers.position_M, strict=True):
        unit = int(np.searchsorted(offsets, column, side="right")) - 1
        index = column - offsets[unit]
        uses_of = case.factors[case.layout.names[unit]]
        share_T = np.sum([entry_by_position(use, slot, index) for use in uses_of], axis=0)
        assert abs(share_T).argmax() == position
        np.testing.assert_allclose(
            SCALE * share_T.sum(), case.shift_NP[slot, column], rtol=1e-4, atol=1e-5
        )


def entry_by_position(use: Factor, slot: int, index: int) -> np.ndarray:
    if use.a_NTI is None:
        return use.delta_NTO[slot, :, index].numpy()
    if use.kind == "scale":
        return (use.delta_NTO[slot, :, index] * use.a_NTI[slot, :, index]).numpy()
    row, column = divmod(index, use.a_NTI.shape[2])
    return (use.delta_NTO[slot, :, row] * use.a_NTI[slot, :, column]).numpy()


def test_few_more_entries_are_candidates_than_are_kept():
    generator = torch.Generator().manual_seed(0)
    layout = Layout({"w": (300, 200)})
    delta = torch.randn(4, 5, 300, generator=generator)
    a = torch.randn(4, 5, 200, generator=generator)
    buffer = ShiftBuffer(layout, 4, CPU)
    buffer.fill({"w": [Factor("outer", delta, a)]}, 1.0)
    bound_N = buffer.peak_NG.topk(100, dim=1).values[:, -1]
    datum_M, _, _ = buffer.candidates(4, bound_N[:, None].expand_as(buffer.peak_NG))
    assert 400 <= len(datum_M) < 600


def test_a_buffer_holds_as_many_datums_as_fit(monkeypatch):
    monkeypatch.setattr("capture.shifts.shift_buffer.BUFFER_BYTES", 4 * 120 * 3)
    assert ShiftBuffer(Layout({"w": (9, 10)}), 20, CPU).datums == 3
    assert ShiftBuffer(Layout({"w": (90, 100)}), 20, CPU).datums == 1


def test_largest_indices_of_rows_of_different_length():
    size = torch.tensor([3.0, 3.0, 1.0, 7.0, 5.0, 5.0, 5.0])
    row = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    assert largest_indices(size, row, 2).tolist() == [0, 1, 3, 4, 5]


def test_largest_indices_do_not_depend_on_how_many_rows_are_padded_together(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    row_M = torch.arange(9).repeat_interleave(torch.tensor([3, 1, 8, 0, 2, 5, 5, 1, 4]))
    size_M = torch.randint(4, (len(row_M),), generator=generator).float()
    whole = largest_indices(size_M, row_M, 3)
    monkeypatch.setattr("capture.shifts.outliers.ENTRIES_AT_ONCE", 16)
    assert torch.equal(largest_indices(size_M, row_M, 3), whole)


@pytest.mark.parametrize(
    ("scope", "k", "problem"),
    [
        ("datum", 262, "got 262, must be at most 261, the number of captured parameters"),
        ("unit", 129, "got 129, must be at most 128, the size of the largest captured unit"),
    ],
)
def test_more_outliers_than_there_are_entries_are_refused(scope, k, problem):
    sizes = make_case(0, 1).layout.sizes
    OutlierConfig(k=k - 1, scope=scope).require_available(sizes, "capture.outliers.k")
    with pytest.raises(ConfigError, match=rf"capture\.outliers\.k: {problem}\."):
        OutlierConfig(k=k, scope=scope).require_available(sizes, "capture.outliers.k")


def test_k_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"capture\.outliers\.k: got 0, must be at least 1\."):
        OutlierConfig(k=0)

"""Law 8 for embeddings and unembeddings: outliers are the top k of the dense tensor."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import top_k, top_k_of_units
from torch import Tensor

from capture.device import deterministic
from capture.gradients.dense import map_factors, sum_shifts
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.shifts import wide_units
from capture.shifts.outliers import OutlierConfig, Outliers, find_outliers
from capture.shifts.shift_buffer import ShiftBuffer
from capture.shifts.wide_units import WideUnit, is_wide

CPU = torch.device("cpu")
SCALE = -0.5
T, V, D = 4, 40, 5
SHAPES = {"embed": (V, D), "body": (6, 7), "unembed": (V, D), "tied": (V, D), "bias": (V,)}


@pytest.fixture(autouse=True)
def small_units_are_wide(monkeypatch):
    monkeypatch.setattr(wide_units, "SMALL_SIZE", 0)
    monkeypatch.setattr(wide_units, "SEEDS", 2)
    monkeypatch.setattr(wide_units, "ENTRIES_AT_ONCE", 64)


def make_factors(
    seed: int, batch: int, units: Sequence[str] = tuple(SHAPES), levels: int = 0
) -> Factors:
    """``levels``: entries are small whole numbers, so that many shifts are equal; 0: any number."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if levels:
            return torch.randint(-levels, levels + 1, shape, generator=generator).float()
        return torch.randn(*shape, generator=generator) ** 3

    def rows() -> Factor:
        token_NT = torch.randint(V, (batch, T), generator=generator)
        return Factor("rows", draw(batch, T, D), token_NT=token_NT)

    def outer(O: int, I: int) -> Factor:  # noqa: E741
        return Factor("outer", draw(batch, T, O), draw(batch, T, I))

    def transposed() -> Factor:
        return Factor("outer", draw(batch, T, D), draw(batch, T, V), transposed=True)

    made = {
        "embed": [rows()],
        "body": [outer(6, 7)],
        "unembed": [outer(V, D)],
        "tied": [rows(), outer(V, D), transposed()],
        "bias": [Factor("sum", draw(batch, T, V))],
    }
    return {name: made[name] for name in units}


def layout_of(factors: Factors) -> Layout:
    return Layout({name: SHAPES[name] for name in factors})


def dense_shifts(factors: Factors, preconditioner: dict[str, Tensor] | None = None) -> np.ndarray:
    parts = [SCALE * dense(uses, SHAPES[name]) for name, uses in factors.items()]
    if preconditioner:
        parts = [p * preconditioner[name] for p, name in zip(parts, factors, strict=True)]
    return torch.cat([part.flatten(1) for part in parts], 1).numpy()


def find(
    factors: Factors, k: int, scope: str = "datum", pieces: int | None = None, **options: object
) -> Outliers:
    buffer = ShiftBuffer(
        layout_of(factors), pieces or len(next(iter(factors.values()))[0].delta_NTO), CPU
    )
    config = OutlierConfig(k=k, scope=scope)  # pyright: ignore[reportArgumentType]
    return find_outliers(buffer, factors, SCALE, config, **options)  # pyright: ignore[reportArgumentType]


def pairs(outliers: Outliers) -> list[tuple[int, int]]:
    return list(zip(outliers.slot_M.tolist(), outliers.column_M.tolist(), strict=True))


UNITS = st.sampled_from(
    [tuple(SHAPES), ("embed",), ("unembed",), ("tied",), ("body", "embed"), ("embed", "unembed")]
)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 4),
    k=st.integers(1, 200),
    levels=st.sampled_from([1, 2, 5]),
    units=UNITS,
)
def test_outliers_of_each_datum_are_the_top_k_with_ties_to_the_lowest_column(
    seed, batch, k, levels, units
):
    factors = make_factors(seed, batch, units, levels)
    shift_NP = dense_shifts(factors)
    outliers, total_P = find(factors, k), sum_shifts(factors, layout_of(factors), SCALE)
    assert pairs(outliers) == top_k(shift_NP, k)
    np.testing.assert_array_equal(outliers.shift_M, shift_NP[outliers.slot_M, outliers.column_M])
    np.testing.assert_array_equal(total_P, shift_NP.sum(0))


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 4), k=st.integers(1, 300), units=UNITS)
def test_outliers_of_a_step_are_the_top_k_over_its_datums(seed, batch, k, units):
    factors = make_factors(seed, batch, units, levels=2)
    shift_NP = dense_shifts(factors)
    wanted = top_k(shift_NP.reshape(1, -1), k)
    found = pairs(find(factors, k, "step"))
    assert found == [divmod(flat, shift_NP.shape[1]) for _, flat in wanted]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 200),
    levels=st.sampled_from([0, 1, 2]),
    units=UNITS,
)
def test_outliers_of_each_unit_are_its_top_k_of_each_datum(seed, k, levels, units):
    factors = make_factors(seed, 3, units, levels)
    shift_NP = dense_shifts(factors)
    found = find(factors, k, "unit")
    assert pairs(found) == top_k_of_units(shift_NP, k, layout_of(factors).sizes)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 60), units=UNITS)
def test_outliers_are_the_top_k_with_any_magnitudes_and_a_preconditioner(seed, k, units):
    factors = make_factors(seed, 3, units)
    generator = torch.Generator().manual_seed(seed)
    preconditioner = {name: torch.randn(SHAPES[name], generator=generator).exp() for name in units}
    shift_NP = dense_shifts(factors, preconditioner)
    outliers = find(factors, k, preconditioner=preconditioner)
    total_P = sum_shifts(factors, layout_of(factors), SCALE, preconditioner)
    assert pairs(outliers) == top_k(shift_NP, k)
    size_P = np.abs(dense_shifts(map_factors(factors, torch.abs), preconditioner)).sum(0)
    missed_P = np.abs(total_P.numpy() - shift_NP.sum(0))
    num_terms = 2 * 3 * T + 3  # uses, datums, positions; product, scale, preconditioner
    rounding = num_terms * 2.0**-24  # of either sum, by the size of its terms (Higham 2002, 4.2)
    assert (missed_P <= 2 * rounding * size_P).all()


@pytest.mark.parametrize("scope", ["datum", "step", "unit"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_batch_in_parts_gives_the_same_outliers(scope, pieces):
    factors = make_factors(3, 5, levels=2)
    whole = find(factors, 40, scope)
    parts = find(factors, 40, scope, pieces)
    assert pairs(whole) == pairs(parts)
    assert torch.equal(whole.shift_M, parts.shift_M)
    assert torch.equal(whole.position_M, parts.position_M)


def test_the_position_is_the_one_that_contributes_most():
    factors = make_factors(1, 3, ("tied",))
    outliers = find(factors, 30)
    alone = [
        {"tied": [use.map_tensors(lambda x, t=t: x[:, t : t + 1]) for use in factors["tied"]]}
        for t in range(T)
    ]
    share_TNP = np.stack([dense_shifts(factor) for factor in alone])
    for (slot, column), position in zip(pairs(outliers), outliers.position_M, strict=True):
        assert abs(share_TNP[:, slot, column]).argmax() == position


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), unit=st.sampled_from(["embed", "unembed", "tied"]))
def test_no_shift_exceeds_the_bound_of_its_row(seed, unit):
    uses = make_factors(seed, 3, (unit,))[unit]
    shift_NVI = SCALE * dense(uses, (V, D))
    assert (shift_NVI.abs().amax(2) <= WideUnit(uses, (V, D), SCALE, None).bounds()).all()


def test_only_rows_that_may_matter_are_computed(monkeypatch):
    """Two of 40 rows are large; only they and the seeds are computed."""
    factors = make_factors(0, 2, ("unembed",))
    factors["unembed"][0].delta_NTO[:, :, 2:] *= 1e-4
    seen, compute = [], WideUnit.rows
    monkeypatch.setattr(
        WideUnit, "rows", lambda unit, row_NW: seen.append(row_NW) or compute(unit, row_NW)
    )
    outliers = find(factors, 2 * D)
    assert set((outliers.column_M // D).tolist()) == {0, 1}
    assert sum(row_NW.shape[1] for row_NW in seen) == 2 + 2 * 2


def test_a_unit_is_wide_if_it_is_large_and_has_far_more_rows_than_columns(monkeypatch):
    monkeypatch.setattr(wide_units, "SMALL_SIZE", 2**16)
    assert is_wide((28_782, 200))
    assert is_wide((50_304, 512))
    assert is_wide((32_000, 4_096))  # Llama 2 of 7 billion parameters, Mistral's first
    assert not is_wide((14_336, 4_096))  # a layer of the latter
    assert not is_wide((8_192, 8_192))
    assert not is_wide((4_096, 32_000))
    assert not is_wide((2_048, 512))
    assert not is_wide((768, 50_257))
    assert not is_wide((28_782,))
    assert not is_wide((400, 20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scope", ["datum", "step", "unit"])
def test_on_a_gpu_the_outliers_are_the_same(scope):
    factors = make_factors(5, 4, levels=2)
    there = {
        name: [use.map_tensors(lambda x: x.cuda()) for use in uses]
        for name, uses in factors.items()
    }
    config, cuda = OutlierConfig(k=40, scope=scope), torch.device("cuda")
    with deterministic():
        found = find_outliers(ShiftBuffer(layout_of(factors), 4, cuda), there, SCALE, config)
    wanted = find(factors, 40, scope)
    assert pairs(found) == pairs(wanted)
    assert torch.equal(found.shift_M.cpu(), wanted.shift_M)
    assert torch.equal(found.position_M.cpu(), wanted.position_M)

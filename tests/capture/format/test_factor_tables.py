"""Factor tables store each array once, in the smaller form, with reproducible bytes."""

import json
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tiny import make_run, tiny_config
from torch import Tensor

from capture import device
from capture.format import factor_layout, factor_parts
from capture.format.factor_layout import KEY, decode
from capture.format.factor_parts import FactorParts, first_row_of, rows_of_parts
from capture.format.factor_reader import columns_of, dense, error_bound, read_row
from capture.format.factor_tables import lay_out, rows_of_step, to_half
from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.training import loop as training

N, T, V = 3, 4, 7
PACKINGS = pytest.mark.parametrize("packing", ["plain", "planes"])
SHAPES = {
    **{"q": (5, 6), "q.bias": (5,), "k": (2, 6), "conv1d": (6, 5), "norm": (6,), "norm.bias": (6,)},
    **{"embedding": (V, 6), "tied": (V, 6), "image": (5, 2, 3)},
}


def floats(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example() -> Factors:
    """Return factors of every kind, some of which share an input or an output gradient."""
    x, q, k = floats(N, T, 6, seed=1), floats(N, T, 5, seed=2), floats(N, T, 2, seed=3)
    normed, out = floats(N, T, 6, seed=4), floats(N, T, 6, seed=5)
    token_NT = torch.arange(N * T).reshape(N, T) % V
    rows = Factor("rows", out.clone(), token_NT=token_NT)
    return {
        "q": [Factor("outer", q, x.detach())],
        "q.bias": [Factor("sum", q.view(N, T, 5))],
        "k": [Factor("outer", k, x)],
        "conv1d": [Factor("outer", q, x, transposed=True)],
        "norm": [Factor("scale", floats(N, T, 6, seed=6), normed)],
        "norm.bias": [Factor("sum", floats(N, T, 6, seed=7))],
        "embedding": [rows],
        "tied": [rows, Factor("outer", floats(N, T, V, seed=8), x)],
        "image": [Factor("outer", q, x)],
    }


def gradients_of(uses: list[Factor], shape: tuple[int, ...]) -> Tensor:
    out_NS = torch.empty(N, int(np.prod(shape)))
    write_shifts(uses, 1.0, out_NS)
    return out_NS.reshape(N, *shape)


def stored(
    factors: Factors,
    precision: Literal["float32", "float16"] = "float32",
    packing: factor_layout.Packing = "plain",
) -> tuple[pa.Table, factor_layout.FactorLayout]:
    parts, datum_N = FactorParts(), np.array([30, 10, 20])
    parts.add(*rows_of_step(9, datum_N, factors, -0.5, precision, packing=packing))
    data, num_rows = parts.close()[0].encode()
    table = parquet.read_table(pa.BufferReader(data))
    assert table.num_rows == num_rows == N
    metadata = parquet.read_metadata(pa.BufferReader(data)).metadata
    return table, decode(metadata[KEY], SHAPES)


# --- write then read is identity ------------------------------------------------------------------


@PACKINGS
def test_every_kind_of_factor_is_read_back_bit_identical(packing: factor_layout.Packing):
    factors = example()
    table, layout = stored(factors, packing=packing)
    assert table["datum"].to_pylist() == [30, 10, 20]
    assert table["slot"].to_pylist() == [0, 1, 2]
    for unit, shape in SHAPES.items():
        wanted = gradients_of(factors[unit], shape)
        for slot in range(N):
            columns = [*columns_of(layout, unit), "scale"]
            row = {name: table[name][slot] for name in columns}
            found = read_row(row, layout, unit, shape)
            assert found.scale == -0.5
            assert torch.equal(dense(found.uses, shape), wanted[slot]), unit


def test_each_array_is_stored_once_and_the_smaller_form_is_stored():
    _, layout = stored(example())
    uses = {
        unit: [factor_layout.nondefault_fields(use) for use in uses]
        for unit, uses in layout.uses.items()
    }
    assert uses["q"][0]["a"] == uses["k"][0]["a"] == uses["conv1d"][0]["a"] == uses["tied"][1]["a"]
    assert uses["q"][0]["delta"] == uses["q.bias"][0]["delta"]
    assert uses["norm"] == [{"kind": "sum", "delta": "sums", "columns": (0, 6)}]
    assert uses["norm.bias"] == [{"kind": "sum", "delta": "sums", "columns": (6, 12)}]
    assert len(layout.arrays) == 7, "x, q, k, rows' δ, tokens, tied δ, sums"


def test_equal_factors_give_equal_bytes():
    one, again = (rows_of_step(0, np.arange(N), example(), 1.0, "float32") for _ in range(2))
    parts = [FactorParts(), FactorParts()]
    for each, rows in zip(parts, (one, again), strict=True):
        each.add(*rows)
    one_bytes, again_bytes = (each.close()[0].encode()[0] for each in parts)
    assert one_bytes == again_bytes


def test_a_preconditioned_step_is_marked_in_the_layout():
    rows = rows_of_step(0, np.arange(N), example(), 1.0, "float32", preconditioned=True)
    assert decode(rows[0].encode().encode(), SHAPES) == rows[0]
    assert rows[0].preconditioned
    assert not stored(example())[1].preconditioned


def test_the_written_layout_is_golden():
    """Stored runs must stay readable."""
    factors = example()
    layout, _ = lay_out({unit: factors[unit] for unit in ("q", "q.bias", "norm")}, "float32")
    # Tables before schema version 3 have planes and no field "packing".
    assert json.loads(replace(layout, packing="plain").encode()).pop("packing") == "plain"
    assert json.loads(layout.encode()) == {
        "arrays": {"f00": [4, 6, "float32"], "f01": [4, 5, "float32"], "sums": [1, 6, "float32"]},
        "uses": {
            "q": [{"kind": "outer", "delta": "f01", "a": "f00"}],
            "q.bias": [{"kind": "sum", "delta": "f01"}],
            "norm": [{"kind": "sum", "delta": "sums", "columns": [0, 6]}],
        },
    }
    kinds = ["step int32", "slot int16", "datum int32", "scale double"]
    columns_of_packing: dict[factor_layout.Packing, list[str]] = {
        "plain": ["f00"],
        "planes": ["f00_high", "f00_low"],
    }
    for packing, columns in columns_of_packing.items():
        table, _ = stored(example(), packing=packing)
        found = [f"{f.name} {f.type}" for f in table.schema][: 4 + len(columns)]
        assert found == kinds + [f"{column} binary" for column in columns]


def test_rows_with_another_number_of_bytes_or_an_unknown_packing_are_refused():
    table, layout = stored(example())
    row = {name: table[name][0] for name in [*columns_of(layout, "q"), "scale"]}
    row["f00"] = pa.scalar(row["f00"].as_py()[:-4], pa.binary())
    with pytest.raises(ValueError, match=r"its column f00 has 92 bytes, not 96"):
        read_row(row, layout, "q", SHAPES["q"])
    text = replace(layout, packing="plain").encode().replace('"plain"', '"twisted"')
    with pytest.raises(ValueError, match="its packing 'twisted' is unknown"):
        decode(text.encode(), SHAPES)


# --- float16 --------------------------------------------------------------------------------------


@given(power=st.integers(-100, 100), seed=st.integers(0, 99))
def test_float16_records_its_largest_error_at_any_scale(power, seed):
    value_NS = floats(4, 9, seed=seed).numpy() * np.float32(2.0) ** power
    half_NS, exponent_N, error_N = to_half(value_NS)
    assert np.isfinite(half_NS).all()
    decoded = half_NS.astype(np.float64) * 2.0 ** exponent_N[:, None]
    off_N = np.abs(decoded - value_NS).max(1)
    assert (off_N <= error_N).all()
    assert (error_N <= 2.0**-11 * np.abs(value_NS).max(1) * 1.01).all()


@PACKINGS
def test_float16_bounds_the_error_of_every_entry_of_every_gradient(packing: factor_layout.Packing):
    factors = example()
    table, layout = stored(factors, "float16", packing)
    for unit, shape in SHAPES.items():
        wanted = gradients_of(
            [use.map_tensors(lambda x: x) for use in factors[unit]], shape
        ).double()
        columns = [*columns_of(layout, unit), "scale"]
        for slot in range(N):
            row = {name: table[name][slot] for name in columns}
            found = read_row(row, layout, unit, shape)
            off = (dense(found.uses, shape).double() - wanted[slot]).abs()
            assert (off <= error_bound(found).double() + 1e-6).all()


def test_zeros_and_exact_numbers_have_no_error():
    half_NS, _, error_N = to_half(np.array([[0, 0], [1, -0.5]], np.float32))
    assert error_N.tolist() == [0, 0]
    assert half_NS[0].tolist() == [0, 0]


# --- tables of a few megabytes --------------------------------------------------------------------


@given(most=st.integers(1, 9), steps=st.integers(1, 5))
def test_cutting_into_tables_keeps_all_rows_and_whole_steps_if_they_fit(most, steps):
    parts, closed = FactorParts(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factor_parts, "PART_ROWS", most)
        for step in range(steps):
            closed += parts.add(*rows_of_step(step, np.arange(N), example(), 1.0, "float32"))
        closed += parts.close()
        row_bytes = closed[0].layout.row_bytes
        foreseen = rows_of_parts(row_bytes, steps=steps, datums=N)
    assert [part.num_rows for part in closed] == foreseen
    rows = [(p.step, s) for part in closed for p in part.pieces for s in p.slot_N.tolist()]
    assert rows == [(step, slot) for step in range(steps) for slot in range(N)]
    assert all(part.num_rows <= most for part in closed)
    if most >= N:
        assert all(part.num_rows % N == 0 for part in closed)
    keys = [part.key(12, "w00") for part in closed]
    assert keys == sorted(keys)
    firsts = [(p.pieces[0].step, int(p.pieces[0].slot_N[0])) for p in closed]
    assert [first_row_of(key) for key in keys] == firsts
    assert parts.close() == []


def test_a_different_layout_starts_a_new_table():
    parts = FactorParts()
    one, other = example(), {"q": example()["q"]}
    assert parts.add(*rows_of_step(0, np.arange(N), one, 1.0, "float32")) == []
    assert len(parts.add(*rows_of_step(1, np.arange(N), other, 1.0, "float32"))) == 1


def test_a_run_s_bytes_do_not_depend_on_when_its_tables_were_packed(tmp_path, monkeypatch):
    """Laws 3 and 5: packed beside training or while it waits, with room for one table or for
    all."""
    monkeypatch.setattr(factor_parts, "PART_ROWS", 8)
    runs = []
    for number in (0, 1, 3):  # of 4 and 3 tables a segment
        monkeypatch.setattr(training, "packing_threads", lambda device, number=number: number)
        for pending in (2**30, 1):
            name = f"{number}-{pending}"
            settings = ["capture.factors.enabled=true", "training.epochs=1"]
            settings.append(f"store.max_pending_bytes={pending}")
            make_run(tiny_config(tmp_path, *settings, name=name))
            folder = tmp_path / name / "factors"
            runs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert all(run == runs[0] for run in runs)
    assert len(runs[0]) == 14 / 2


@pytest.mark.parametrize(
    ("kind", "cores", "threads", "wanted"),
    [("cpu", 2, 2, 2), ("cpu", 64, 64, 8), ("cpu", 4, 3, 0), ("cuda", 2, 2, 0), ("cpu", 1, 1, 1)],
)
def test_training_waits_for_packing_if_it_uses_all_cores(kind, cores, threads, wanted, monkeypatch):
    monkeypatch.setattr(device, "available_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device.packing_threads(torch.device(kind)) == wanted


# --- layouts of unknown origin --------------------------------------------------------------------

GOOD = {"arrays": {"d": [4, 5, "float32"], "a": [4, 6, "float32"]}}
USE = {"kind": "outer", "delta": "d", "a": "a"}


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {}},
        {"arrays": {"d": [4, 5, "float32"], "a": [4, 7, "float32"]}},
        {"arrays": {"d": [3, 5, "float32"], "a": [4, 6, "float32"]}},
        {"arrays": {"d": [4, 5, "int32"], "a": [4, 6, "float32"]}},
        {"arrays": {"d": [4, 5, "float64"], "a": [4, 6, "float32"]}},
        {"arrays": {"d": [4, -5, "float32"], "a": [4, 6, "float32"]}},
        {"arrays": {"d": [2**40, 5, "float32"], "a": [4, 6, "float32"]}},
        {"arrays": []},
        {"uses": {"nothing": [USE]}},
        {"uses": {"q": []}},
        {"uses": {"q": [USE | {"kind": "scale"}]}},
        {"uses": {"q": [USE | {"kind": "dance"}]}},
        {"uses": {"q": [USE | {"columns": [0, 6]}]}},
        {"uses": {"q": [USE | {"columns": [0]}]}},
        {"uses": {"q": [USE | {"token": "a"}]}},
        {"uses": {"q": [USE | {"transposed": True}]}},
        {"uses": {"q": [USE | {"more": 1}]}},
        {"uses": {"q": [{"kind": "rows", "delta": "a", "token": "d"}]}},
        {"uses": 3},
    ],
)
def test_an_impossible_layout_is_refused(change):
    decode(json.dumps(GOOD | {"uses": {"q": [USE]}}).encode(), SHAPES)
    with pytest.raises(ValueError, match="factors"):
        decode(json.dumps(GOOD | {"uses": {"q": [USE]}} | change).encode(), SHAPES)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{}", b"[" * 100_000])
def test_text_that_is_not_a_layout_is_refused(text):
    with pytest.raises(ValueError, match="not readable"):
        decode(text, Layout(SHAPES).shapes)

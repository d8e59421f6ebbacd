"""Levels of attribution, and settings and runs that are refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from attributed import attributed
from tiny_families import VOCABULARY, WINDOW, tiny_model
from tiny_run import copied, tiny_run

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.levels import LEVELS, Level, groups_at, parameters_at
from analysis.neurons.datums import neuron_by_parameter
from analysis.run.run import open_run
from capture.errors import ConfigError, RunError
from capture.format.markers import segment_key
from capture.gradients.layout import Layout
from capture.models.huggingface import stored_transposed
from capture.parts import head_blocks, parted
from cluster.local.threads import run_job

# --- levels ---------------------------------------------------------------------------------------

LAYOUT = Layout(
    {
        "layers.0.self_attn.in_proj_weight": (12, 4),
        "layers.0.self_attn.in_proj_bias": (12,),
        "layers.0.self_attn.out_proj.weight": (4, 4),
        "layers.0.linear1.weight": (3, 4),
        "layers.1.self_attn.out_proj.weight": (4, 4),
    }
)


def named_groups(level: Level) -> dict[tuple[str, int], tuple[str, int] | None]:
    """Return (unit, index) of every captured parameter → unit and number of its group."""
    groups = groups_at(level, LAYOUT, heads=2)
    found = {}
    for unit, start, size in zip(LAYOUT.names, LAYOUT.offsets, LAYOUT.sizes, strict=False):
        for index in range(size):
            group = groups.group_P[start + index]
            name = (groups.units[group], int(groups.number_G[group])) if group >= 0 else None
            found[unit, index] = name
    return found


def test_neurons_are_columns_of_mlp_units_and_rows_are_outputs() -> None:
    neurons, rows = named_groups("neuron"), named_groups("row")
    for (unit, index), name in neurons.items():
        assert name == ((unit, index % 4) if unit.endswith("linear1.weight") else None)
    for (unit, index), name in rows.items():
        assert name == ((unit, index // 4) if len(LAYOUT.shapes[unit]) == 2 else None)
    for (unit, _), name in named_groups("unit").items():
        assert name == (unit, -1)


def test_a_head_has_rows_of_the_input_projections_and_columns_of_the_output_one() -> None:
    for (unit, index), name in named_groups("head").items():
        row, column = divmod(index, 4)
        attention = unit[:8] + ".self_attn"
        if unit.endswith("in_proj_weight"):
            assert name == (attention, row % 4 // 2)
        elif unit.endswith("out_proj.weight"):
            assert name == (attention, column // 2)
        else:
            assert name is None


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "parameter"])
def test_families_are_units_layers_of_heads_or_all_units(level: Level) -> None:
    groups = groups_at(level, LAYOUT, heads=2)
    own = pd.DataFrame({"unit": groups.units, "family": groups.family_G})
    families = 1 if level == "unit" else own["unit"].nunique()
    assert own["family"].nunique() == groups.num_families == families
    assert level == "unit" or (own.groupby("unit")["family"].nunique() == 1).all()


def test_parameters_leave_the_rest_of_their_unit_as_one_group() -> None:
    groups = parameters_at(np.array([80, 3, 78]), LAYOUT)
    names = [(name, number) for name, number in zip(groups.units, groups.number_G, strict=True)]
    first, last = LAYOUT.names[0], LAYOUT.names[3]
    assert names == [(last, 4), (first, 3), (last, 2)]
    assert groups.family_G.tolist() == [1, 0, 1, 0, 1]
    assert np.bincount(groups.group_P + 1).tolist() == [12 + 16 + 16, 1, 1, 1, 47, 10]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"level": "layer"}, "level: got layer, must be one of parameter, neuron, row, unit, head"),
        (
            {"evidence": "input-use"},
            "evidence: got input-use, which is now called input-ablation-esti.*",
        ),
        ({"windows": 0}, "windows: got 0, must be at least 1"),
        ({"max_parameters": 0}, "max_parameters: got 0, must be at least 1"),
        ({"max_datums": 0}, "max_datums: got 0, must be at least 1"),
        ({"keep": 0.0}, r"keep: got 0\.0, must be above 0 and at most 1"),
        ({"first_step": -1}, "first_step: got -1, must be at least 0"),
        ({"first_step": 5, "end_step": 5}, "end_step: got 5, must be above the first step, 5"),
        (
            {"evidence": "ablation-estimate", "level": "head"},
            "level: got head, with evidence ablation-estimate it must be neuron. Other settings "
            "need one of the evidences target, input, window",
        ),
        (
            {"evidence": "input-use"},
            "evidence: got input-use, which is now called input-ablation-estimate",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"^attribution\.{problem}\.$"):
        AttributionConfig(**settings)


@pytest.mark.parametrize(("first", "end"), [(24, None), (3, 25)])
def test_steps_that_the_run_lacks_are_refused(first: int, end: int | None) -> None:
    problem = f"has steps 0 to 23, asked for {first} to {(end or 24) - 1}. Steps are chosen as in"
    with pytest.raises(RunError, match=problem):
        attributed(first_step=first, end_step=end)


def test_a_run_without_segments_is_refused() -> None:
    store = copied(tiny_run(), "memory://attribution-empty")
    for segment in range(4):
        store.delete(segment_key(segment))
    for config in (AttributionConfig(), AttributionConfig(evidence="ablation-estimate")):
        with pytest.raises(RunError, match="holds no committed segment yet"):
            attribute(open_run(store.uri), run_job, config)


def test_neurons_of_a_weight_that_is_stored_transposed_are_its_rows() -> None:
    """Hugging Face's Conv1D stores weights so; both functions that group a unit's entries agree."""
    names = ["h.0.mlp.c_fc.weight", "h.0.mlp.c_fc.bias", "h.0.attn.c_attn.weight"]
    layout = Layout(dict(zip(names, [(4, 3), (3,), (4, 6)], strict=True)), frozenset(names))
    neurons, rows = (groups_at(level, layout, heads=2) for level in ("neuron", "row"))
    assert neurons.number_G[neurons.group_P[:12]].tolist() == [i // 3 for i in range(12)]
    assert rows.number_G[rows.group_P[:12]].tolist() == [i % 3 for i in range(12)]
    assert (neurons.group_P[12:] == -1).all()
    assert neuron_by_parameter(layout).tolist() == neurons.group_P.tolist()


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("gpt2", {"attn.c_attn.weight": "outputs", "attn.c_proj.weight": "inputs"}),
        ("llama", {"self_attn.q_proj.weight": "outputs", "self_attn.o_proj.weight": "inputs"}),
        (
            "opt",
            {f"self_attn.{n}_proj.weight": "outputs" for n in "kvq"}
            | {"self_attn.out_proj.weight": "inputs"},
        ),
    ],
)
def test_heads_of_other_models_are_blocks_of_the_weights_that_they_alone_use(name, units):
    """GPT-2 stores weights [I, O]; Llama's keys and values are shared by two heads."""
    model = tiny_model(name)
    tokens = torch.randint(VOCABULARY, (3, WINDOW))
    blocks = head_blocks(parted(model, tokens))
    shapes = {key: own for key, own in model.named_parameters() if own.dim() == 2}
    layout = Layout.of(shapes, stored_transposed(model))
    groups = groups_at("head", layout, heads=0, blocks=blocks)
    assert groups.number_G.tolist() == [0, 1, 2, 3] * 2
    for start, key, shape in zip(
        layout.offsets, layout.names, layout.shapes.values(), strict=False
    ):
        own = groups.group_P[start : start + shape[0] * shape[1]].reshape(shape)
        end = next((end for unit, end in units.items() if key.endswith(unit)), None)
        if end is None:
            assert (own == -1).all()
            continue
        stored_first = "inputs" if key in layout.transposed else "outputs"
        own = own if end == stored_first else own.T
        assert (own == own[:, :1]).all()
        assert (np.bincount(own[:, 0] % 4) == len(own) // 4).all()

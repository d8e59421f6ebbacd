"""Weights of MLPs are found by name, or by their shapes within a layer."""

import pytest

from capture.models.mlp import mlp_weights

SQUARE, UP, DOWN = (4, 4), (8, 4), (4, 8)
LAYERS: dict[str, tuple[dict[str, tuple[int, ...]], list[str]]] = {
    "opt": (
        {"self_attn.q_proj.weight": SQUARE, "fc1.weight": UP, "fc1.bias": (8,), "fc2.weight": DOWN},
        ["fc1.weight", "fc2.weight"],
    ),
    "bert": (
        {
            "attention.output.dense.weight": SQUARE,
            "intermediate.dense.weight": UP,
            "output.dense.weight": DOWN,
        },
        ["intermediate.dense.weight", "output.dense.weight"],
    ),
    "queries wider than the stream": (
        {"self_attn.q_proj.weight": UP, "self_attn.o_proj.weight": DOWN, "mlp.up.weight": UP},
        ["mlp.up.weight"],
    ),
    "gates": (
        {"mlp.gate_up_proj.weight": (16, 4), "mlp.down_proj.weight": DOWN},
        ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
    ),
    "one of the two is captured": ({"fc1.weight": UP}, []),
}


@pytest.mark.parametrize("family", LAYERS)
def test_mlps_of_every_layer_are_found(family):
    shapes, wanted = LAYERS[family]
    shapes = {f"h.{layer}.{name}": shape for layer in (0, 1) for name, shape in shapes.items()}
    shapes |= {"embed.weight": (50, 4), "project_in.weight": UP, "project_out.weight": DOWN}
    assert mlp_weights(shapes) == [f"h.{layer}.{name}" for layer in (0, 1) for name in wanted]


def test_weights_of_different_layers_do_not_pair():
    assert mlp_weights({"0.weight": UP, "2.weight": DOWN}) == []

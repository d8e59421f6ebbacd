"""Families of Hugging Face models: exact against one pass per datum, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_settings import GROUPED, WIDE, family_settings, with_heads_of
from reference import gradients_of
from tiny import make_run, read_outliers
from tiny_hf import hf_config
from torch.nn import functional as F

from analysis.run.run import open_run
from analysis.run.tallies import tally_units
from capture.engine.build import complete_config
from capture.errors import ConfigError, UnitError
from capture.gradients.examination import examine_units
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.models.huggingface import HFConfig, HFModel, build_hf_model
from capture.shifts.outliers import OutlierConfig, find_outliers
from capture.shifts.shift_buffer import ShiftBuffer
from cluster.cli import main

pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")

N, T, V = 3, 4, 23
"""As many positions as heads, so that lengths alone do not tell them apart."""
FAMILIES = family_settings(head_dim=T) | {
    "roberta": WIDE | {"is_decoder": True, "pad_token_id": 1, "max_position_embeddings": 10},
}


def tiny(family: str) -> HFModel:
    config = HFConfig(family=family, settings=FAMILIES[family])
    return build_hf_model(config, vocabulary=V, window=8, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_is_that_of_the_datum_alone_at_positions_of_the_window(family):
    model = tiny(family)
    token_NT = torch.randint(V, (N, T + 1), generator=torch.Generator().manual_seed(1))
    units = choose_units(model, ["*"])
    layout = Layout.of(units)
    examined = examine_units(model, units, token_NT[:1, :-1])
    assert examined.unsplit == {}

    def loss_of(token: torch.Tensor) -> torch.Tensor:
        logit = model(token[:, :-1]).flatten(0, 1)
        return F.cross_entropy(logit, token[:, 1:].flatten(), reduction="sum") / (N * T)

    with Tape(units, N, examined.window_axes) as tape:
        loss = loss_of(token_NT)
    loss.backward()
    factors = tape.factors()
    alone = [gradients_of(loss_of(token_NT[n : n + 1]), model) for n in range(N)]
    for name, shape in layout.shapes.items():
        wanted = torch.stack([gradient[name] for gradient in alone])
        torch.testing.assert_close(dense(factors[name], shape), wanted, rtol=1e-4, atol=1e-6)
    buffer = ShiftBuffer(layout, N, torch.device("cpu"))
    found = find_outliers(buffer, factors, 1.0, OutlierConfig(k=layout.size))
    assert sorted(set(found.position_M.tolist())) == list(range(T))


@pytest.mark.parametrize("family", ["qwen3", "opt", "roberta"])
def test_a_captured_run_can_be_attributed(tmp_path: Path, family: str, capsys):
    """Qwen3's norms of queries and keys have T · H entries per datum; OPT's MLP has no name."""
    units = {
        "qwen3": ["model.*norm.weight", "*.mlp.*"],
        "opt": ["*.fc?.weight"],
        "roberta": ["*dense.weight"],
    }[family]
    config = hf_config(
        tmp_path,
        {"family": family, "settings": FAMILIES[family]},
        f"capture.units={units}",
        "capture.factors.enabled=true",
        "capture.outliers.k=400",
    )
    make_run(config)
    rows = read_outliers(config.run.uri)
    assert len(tally_units(open_run(config.run.uri))) in (4, 6)
    assert max(rows["position"].to_pylist()) == 7
    assert any("q_norm" in unit for unit in rows["unit"].to_pylist()) == (family == "qwen3")
    assert main(["attribute", config.run.uri]) == 0
    assert "neurons" in capsys.readouterr().out


NEURONS = {
    "opt": ("fc1", "fc2"),
    "bert": ("intermediate.dense", "output.dense"),
    "roberta": ("intermediate.dense", "output.dense"),
}
"""Weights of an MLP that has no such name; those of other families have ``.mlp.`` in theirs."""
GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2"}
"""Families whose MLPs have a gate with a weight of its own."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_the_mlps_have_tallies(tmp_path: Path, family: str):
    config = hf_config(tmp_path, {"family": family, "settings": FAMILIES[family]})
    patterns, model = complete_config(config).capture.tally.units, tiny(family)
    found = [name for name, unit in choose_units(model, patterns).items() if unit.dim() == 2]
    assert len(found) == 2 * (3 if family in GATED else 2)  # two layers
    if family in NEURONS:
        ends = [f"{part}.weight" for part in NEURONS[family]] * 2
        assert all(name.endswith(end) for name, end in zip(found, ends, strict=True))
        assert not any(".attention." in name for name in found)
    else:
        assert all(".mlp." in name for name in found)


WITHOUT_FACTORS = {
    "mixtral": (GROUPED | {"num_local_experts": 2}, "model.layers.0.mlp.experts.gate_up_proj"),
    "mamba": (
        {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4},
        "backbone.layers.0.mixer.A_log",
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("family", WITHOUT_FACTORS)
def test_units_without_factors_are_refused_by_name_or_captured_by_vmap(tmp_path, family: str):
    settings, unit = WITHOUT_FACTORS[family]
    described = {"family": family, "settings": settings}
    with pytest.raises(UnitError, match=rf"^{unit}: is used by \w+, which capture cannot split"):
        make_run(hf_config(tmp_path, described))
    make_run(hf_config(tmp_path, described, "capture.fallback=vmap", name="by-vmap"))
    assert (open_run(str(tmp_path / "by-vmap")).steps()["audit_error"] < 1e-4).all()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_parameters_that_are_not_trained_have_no_shifts(tmp_path: Path):
    settings = with_heads_of(T) | {
        "num_experts": 4,
        "moe_intermediate_size": 8,
        "num_experts_per_tok": 2,
    }
    described = {"family": "afmoe", "settings": settings | {"num_dense_layers": 0}}
    make_run(hf_config(tmp_path, described, "capture.fallback=vmap"))
    units = set(open_run(str(tmp_path / "run")).layout.names)
    frozen = {f"model.layers.{layer}.mlp.expert_bias" for layer in (0, 1)}
    assert not units & frozen
    assert "model.layers.0.mlp.router.gate.weight" in units
    with pytest.raises(ConfigError, match=r"^capture\.units: match only parameters that are not"):
        make_run(hf_config(tmp_path, described, f"capture.units=[{min(frozen)}]", name="frozen"))


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        ("fuyu", "which is not a model of text alone: it has no vocab_size. Choose the family of"),
        ("gemma4_assistant", "whose own defaults the library refuses: "),
    ],
)
def test_a_family_that_the_library_cannot_build_from_tokens_is_one_line(tmp_path, family, problem):
    with pytest.raises(ConfigError, match=rf"^model\.hf\.family: got {family}, {problem}") as found:
        make_run(hf_config(tmp_path, {"family": family}))
    assert "\n" not in str(found.value)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (WIDE, "got bert, which sees later tokens, so also the token that it is trained to "),
    "xlnet": (
        {"d_model": 16, "n_layer": 1, "n_head": 4, "d_inner": 24},
        "got xlnet, which sees later tokens",
    ),
    "phimoe": (
        GROUPED | {"num_local_experts": 4, "input_jitter_noise": 0.1},
        "got phimoe, which draws random numbers while it is trained, so that a datum's gradient",
    ),
    "roberta": (WIDE, "got roberta, which fails on the corpus's tokens: ne() received an invalid"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_cannot_learn_from_next_tokens_alone_is_refused_in_one_line(
    tmp_path: Path, family: str
):
    settings, text = REFUSED[family]
    config = hf_config(tmp_path, {"family": family, "settings": settings})
    with pytest.raises(ConfigError) as found:
        make_run(config)
    assert str(found.value).startswith(f"model.hf.family: {text}")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()
    if family == "bert":
        assert str(found.value).endswith(
            "Choose a causal model, or set model.hf.settings.is_decoder=true."
        )

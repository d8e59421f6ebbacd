"""Composition and path patching: a hand-built induction circuit has one path, through its keys."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_built import induction_model
from observed_models import KINDS, network

from analysis.trajectory.metrics.heads.composition import KINDS as COMPOSITIONS
from analysis.trajectory.metrics.heads.composition import composition
from analysis.trajectory.metrics.heads.paths import path_patching, without_repetition
from analysis.trajectory.metrics.heads.patterns import attention_patterns, share_at
from analysis.trajectory.metrics.prediction import copying
from analysis.trajectory.metrics.row import Row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, repeated_tokens
from capture.errors import ConfigError

V, T = 40, 20
TEXT = Text(V, T, None, None, [], datums=12)


@pytest.fixture(scope="module")
def built() -> Observed:
    return Observed(0, induction_model(V, T))


def by_name(rows) -> dict[tuple[str, str], Row]:
    return {(row.metric, row.component): row for row in rows}


def test_the_hand_built_circuit_copies(built: Observed) -> None:
    found = by_name([*attention_patterns(built, TEXT), *copying(built, TEXT)])
    assert found["previous_token", "L0H0"].value == pytest.approx(1, abs=1e-3)
    assert found["induction", "L1H0"].value > 0.95
    assert found["copying", ""].value < -3


def test_the_circuit_is_wired_through_keys_alone(built: Observed) -> None:
    found = by_name(composition(built, TEXT))
    # W_OV copies V directions into others of the same lengths, all of which the keys read.
    row = found["k_composition", "L0H0 > L1H0"]
    assert row.value == pytest.approx(V**-0.5)
    assert 0 < row.null < row.value
    assert {name for name, each in found.items() if each.value} == {(row.metric, row.component)}


def test_patching_finds_the_path_and_no_other(built: Observed) -> None:
    found = by_name(path_patching(built, TEXT))
    broken = {name for (_, name), row in found.items() if row.value > 1}
    assert broken == {"L0H0 > L1H0", "L1H0 > logits"}
    assert max(abs(row.value) for (_, n), row in found.items() if n not in broken) < 1e-4
    few = replace(TEXT, paths=("L0H0:L1H0",))
    assert [row.value for row in path_patching(built, few)] == pytest.approx(
        [found["path_patching", "L0H0 > L1H0"].value]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_direct_path_to_the_logits_is_that_of_the_residual_stream(kind: str) -> None:
    """Between the last layer's MLP and the logits lies no component: patching it is the same as
    exchanging its output in a pass of the whole model."""
    model = Observed(0, network(kind))
    assert model.parted
    text = Text(30, 8, None, None, [], datums=5, paths=("L1MLP:logits", "L0H1:L1MLP", "L0H0:L1H1"))
    rows = list(path_patching(model, text))
    assert [row.component for row in rows] == ["L1MLP > logits", "L0H1 > L1MLP", "L0H0 > L1H1"]
    own = repeated_tokens(5, 8, 30, 0)
    other_NT = without_repetition(own, 30, 0)
    weight = model.parted.parts.mlp_out[1]
    assert weight
    module = dict(model.network.named_modules())[weight.removesuffix(".weight")]
    states, kept = [], []
    for token_NT in (other_NT, own.token_NT):

        def keep(module, args, output):
            states.append(output)
            return states[0]  # in the second pass: that of the other input

        hook = module.register_forward_hook(keep)
        kept.append(model.logits(torch.from_numpy(token_NT)))
        hook.remove()
    clean_NTV = model.logits(torch.from_numpy(own.token_NT))
    losses = [second_half(logits, own) for logits in (kept[1], clean_NTV)]
    assert rows[0].value == pytest.approx((losses[0] - losses[1]).mean(), abs=1e-5)


def second_half(logits_NTV: torch.Tensor, own) -> np.ndarray:
    target_NT = torch.from_numpy(own.token_NT)[:, 1:]
    loss_NT = torch.nn.functional.cross_entropy(
        logits_NTV[:, :-1].transpose(1, 2), target_NT, reduction="none"
    )
    pairs = zip(loss_NT, own.length_N, strict=True)
    return np.array([float(loss_T[-(length - 1) :].mean()) for loss_T, length in pairs])


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("L0H0", "got 'L0H0'. As in L0H1:L1H2"),
        ("L0H7:L1H0", "but the model has no L0H7"),
        ("L0MLP:L1H0", "but the model has no L0MLP"),
        ("L1H0:L0H0", "but L1H0 does not come before L0H0"),
        ("logits:L0H0", "but logits does not come before L0H0"),
    ],
)
def test_a_path_that_is_not_there_is_refused(built: Observed, path: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        list(path_patching(built, replace(TEXT, paths=(path,))))
    assert problem in str(refused.value)


# --- other libraries ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_head_matrices_give_the_scores_and_the_output_of_attention(kind: str) -> None:
    """What a head adds to the stream is A x W_OV, once biases and norms are out of the way."""
    model = Observed(0, network(kind))
    assert len(model.head_matrices) == 2
    shared = kind == "llama"
    for own in model.head_matrices:
        assert own.q_HED.shape == own.v_HED.shape == (2, 4, 8)
        assert torch.equal(own.k_HED[0], own.k_HED[1]) == shared
    layer, projection = model.head_matrices[0], model.out_projections[0]
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    block = model.blocks[0]
    attention = next(
        part for name, part in block.named_modules() if name.split(".")[-1] in ATTENTION
    )

    def keep(module, args, kwargs, output):
        inputs = args[0] if args else kwargs["hidden_states"]
        kept.append((inputs, output[0] if isinstance(output, tuple) else output))

    for name, weight in block.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
    hook = attention.register_forward_hook(keep, with_kwargs=True)
    token_NT = torch.tensor([[3, 7, 2, 9, 4]])
    weights_NHTS = model.attention(token_NT)[0].double()
    model.logits(token_NT)
    hook.remove()
    assert projection is not None
    x_NTD, out_NTD = (each.double() for each in kept[-1])
    made_NTD = torch.einsum("nhts,nsd,hed->nte", weights_NHTS, x_NTD, layer.writes_HDD)
    torch.testing.assert_close(made_NTD, out_NTD, rtol=1e-3, atol=1e-4)


ATTENTION = ("self_attn", "attn", "attention")


# TransformerLens is a package of the tests alone: `make` installs it.


@pytest.mark.parametrize("kind", KINDS)
def test_composition_is_that_of_transformer_lens(kind: str) -> None:
    lens = pytest.importorskip("transformer_lens")
    composition_scores = lens.utilities.matrix.composition_scores
    model = Observed(0, network(kind))
    rows = by_name(composition(model, TEXT))
    first, second = model.head_matrices
    # There, states are rows: x W_V W_O, and x W_Q W_Kᵀ xᵀ.
    written = lens.FactoredMatrix(first.v_HED.transpose(1, 2), first.o_HDE.transpose(1, 2))
    read = lens.FactoredMatrix(second.q_HED.transpose(1, 2), second.k_HED)
    copied = lens.FactoredMatrix(second.v_HED.transpose(1, 2), second.o_HDE.transpose(1, 2))
    for name, reader in zip(COMPOSITIONS, (read, read.T, copied), strict=True):
        score_HH = composition_scores(written, reader)
        for a in range(2):
            for b in range(2):
                row = rows[name, f"L0H{a} > L1H{b}"]
                assert row.value == pytest.approx(float(score_HH[a, b]), rel=1e-6)


@pytest.mark.parametrize("name", ["previous_token", "duplicate_token", "induction"])
def test_attention_to_a_place_is_that_of_transformer_lens(name: str) -> None:
    detector = pytest.importorskip("transformer_lens.head_detector")
    repeated = repeated_tokens(6, T, V, 3)
    generator = torch.Generator().manual_seed(0)
    weight_NHTS = torch.rand(6, 2, T, T, generator=generator).double().tril()
    weight_NHTS /= weight_NHTS.sum(3, keepdim=True)
    found_NH = share_at(weight_NHTS.numpy(), repeated, name)
    pattern_of = getattr(detector, f"get_{name}_head_detection_pattern")
    for token_T, length, weight_HTS, found_H in zip(
        torch.from_numpy(repeated.token_NT), repeated.length_N, weight_NHTS, found_NH, strict=True
    ):
        pattern_TS = pattern_of(token_T[None]).double()
        wanted_H = (weight_HTS * pattern_TS)[:, T - length :].sum((1, 2)) / length
        assert found_H == pytest.approx(wanted_H.numpy())

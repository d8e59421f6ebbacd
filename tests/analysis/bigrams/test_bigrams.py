"""Largest shifts of bigram logits: exact for any weights, and equal to finite differences."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.bigrams import shifts as bigram_shifts
from analysis.bigrams.layers import EmbeddingNames, EmbeddingPair, find_embeddings
from analysis.bigrams.shifts import BigramShifts, largest_shifts
from capture.errors import UnitError
from capture.models.transformer import LanguageModel, ModelConfig, fresh_model


def pair(unembedding_VD: Tensor, embedding_VD: Tensor, factor: float = 1.0) -> EmbeddingPair:
    return EmbeddingPair(embedding_VD, unembedding_VD, factor)


def all_shifts(before: EmbeddingPair, after: EmbeddingPair) -> np.ndarray:
    """ΔM, [V, V], dense."""
    then_VV, now_VV = (
        p.factor * p.unembedding_VD.double() @ p.embedding_VD.double().T for p in (before, after)
    )
    return (now_VV - then_VV).numpy()


def sorted_shifts(shift_VV: np.ndarray, k: int, token: int | None) -> list[tuple[float, int, int]]:
    """(−|shift|, v, w) of the k largest, found by sorting all."""
    V = len(shift_VV)
    return sorted(
        (-abs(shift_VV[v, w]), v, w)
        for v, w in itertools.product(range(V), range(V))
        if shift_VV[v, w] and (token is None or token in (v, w))
    )[:k]


def assert_found(found: BigramShifts, shift_VV: np.ndarray, k: int, token: int | None) -> None:
    wanted = sorted_shifts(shift_VV, k, token)
    assert found.next_K.tolist() == [v for _, v, _ in wanted]
    assert found.token_K.tolist() == [w for _, _, w in wanted]
    np.testing.assert_array_equal(found.shift_K, shift_VV[found.next_K, found.token_K])


def integer_weights(V: int, D: int, seed: int, moved: float) -> tuple[EmbeddingPair, EmbeddingPair]:
    """Integer weights, so that all arithmetic is exact and many shifts are equal."""
    draw = torch.Generator().manual_seed(seed)
    U, E = (torch.randint(-2, 3, (V, D), generator=draw).float() for _ in range(2))
    changes = [
        torch.randint(-1, 2, (V, D), generator=draw) * (torch.rand(V, 1, generator=draw) < moved)
        for _ in range(2)
    ]
    return pair(U, E, 2.0), pair(U + changes[0], E + changes[1], 2.0)


@given(
    V=st.integers(2, 14),
    D=st.integers(1, 4),
    k=st.integers(1, 40),
    seed=st.integers(0, 999),
    moved=st.sampled_from([0.0, 0.2, 1.0]),
    block=st.sampled_from([1, 3, 512]),
    on_one_side=st.booleans(),
)
def test_the_largest_equal_sorting_all_with_ties_by_v_then_w(
    V: int, D: int, k: int, seed: int, moved: float, block: int, on_one_side: bool
) -> None:
    before, after = integer_weights(V, D, seed, moved)
    token = seed % V if on_one_side else None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bigram_shifts, "BLOCK", block)
        patched.setattr(bigram_shifts, "ENTRIES_AT_ONCE", 5)
        found = largest_shifts(before, after, k, token)
    assert_found(found, all_shifts(before, after), k, token)


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("token", [None, 7])
def test_rounding_hides_no_shift(spread: float, token: int | None) -> None:
    """Shifts that float32 cannot distinguish are ordered in float64."""
    draw = torch.Generator().manual_seed(3)
    U, E, dU, dE = (torch.randn(60, 8, generator=draw) for _ in range(4))
    size_V1 = torch.exp(spread * torch.randn(60, 1, generator=draw))
    U[1::2], dU[1::2] = U[::2] * (1 + 1e-7), dU[::2] * (1 + 1e-7)
    before, after = pair(U, E), pair(U + dU * size_V1, E + dE * size_V1 * 1e-2)
    found = largest_shifts(before, after, 200, token)
    shift_VV = all_shifts(before, after)
    wanted = sorted_shifts(shift_VV, 200, token)
    np.testing.assert_allclose(-np.abs(found.shift_K), [size for size, _, _ in wanted], atol=1e-12)
    np.testing.assert_allclose(found.shift_K, shift_VV[found.next_K, found.token_K], atol=1e-12)
    assert len({*zip(found.next_K.tolist(), found.token_K.tolist(), strict=True)}) == len(found)


def test_few_moved_rows_exclude_most_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    U, E = torch.randn(400, 16, generator=draw), torch.randn(400, 16, generator=draw)
    after = pair(U + 1e-3 * torch.randn(400, 16, generator=draw), E.clone())
    after.unembedding_VD[:5] += 1
    after.embedding_VD[7:9] += 1
    computed = []
    block = bigram_shifts.LogitChange.block

    def counted(change: bigram_shifts.LogitChange, next_R: Tensor, token_C: Tensor) -> Tensor:
        computed.append(len(next_R) * len(token_C))
        return block(change, next_R, token_C)

    monkeypatch.setattr(bigram_shifts, "BLOCK", 16)
    monkeypatch.setattr(bigram_shifts.LogitChange, "block", counted)
    found = largest_shifts(pair(U, E), after, 10)
    assert 0 < sum(computed) < 0.1 * 400 * 400
    wanted = sorted_shifts(all_shifts(pair(U, E), after), 10, None)
    assert [*zip(found.next_K, found.token_K, strict=True)] == [(v, w) for _, v, w in wanted]


def test_equal_weights_have_no_shifts() -> None:
    before, _ = integer_weights(9, 3, 0, 0)
    assert len(largest_shifts(before, before, 5)) == 0


def test_shifts_of_tied_weights_are_symmetric() -> None:
    before, after = (pair(p.embedding_VD, p.embedding_VD) for p in integer_weights(8, 3, 1, 1.0))
    found = largest_shifts(before, after, 64)
    assert_found(found, all_shifts(before, after), 64, None)
    by_pair = {(v, w): s for v, w, s in zip(*vars(found).values(), strict=True)}
    assert all(by_pair[w, v] == shift for (v, w), shift in by_pair.items())


# --- what the model has to do with it -------------------------------------------------------------


def tiny_model() -> LanguageModel:
    return fresh_model(
        ModelConfig(layers=1, width=6, hidden=4, heads=2), vocabulary=11, window=5, seed=0
    )


def test_shifts_are_the_finite_differences_of_the_model_without_its_layers() -> None:
    """Reference: logits of decoder(encoder(w) · √width) without the bias, after − before."""
    model, other = tiny_model(), tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)

    def logits(model: LanguageModel) -> np.ndarray:
        every_token = torch.arange(11)
        logit_WV = model.decoder(model.encoder(every_token) * math.sqrt(6)) - model.decoder.bias
        return logit_WV.detach().double().numpy().T

    pairs = [
        EmbeddingPair.of({n: p.detach() for n, p in m.named_parameters()}, find_embeddings(m))
        for m in (model, other)
    ]
    found = largest_shifts(pairs[0], pairs[1], 121)
    difference_VV = logits(other) - logits(model)
    assert len(found) == 121
    np.testing.assert_allclose(found.shift_K, difference_VV[found.next_K, found.token_K], atol=2e-6)


def test_embeddings_of_the_transformer_are_found() -> None:
    model = tiny_model()
    assert find_embeddings(model) == EmbeddingNames(
        "encoder.weight", "decoder.weight", math.sqrt(6)
    )
    model.decoder.weight = model.encoder.weight
    found = find_embeddings(model)
    assert (found.embedding, found.unembedding) == ("encoder.weight", "encoder.weight")
    assert found.units == ["encoder.weight"]


class Causal(nn.Module):
    """A model with the accessors of Hugging Face."""

    def __init__(self, output_width: int, tied: bool = False) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(9, 4), nn.Linear(output_width, 9, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_embeddings_are_found_by_their_accessors() -> None:
    assert find_embeddings(Causal(4)) == EmbeddingNames("wte.weight", "head.weight", 1.0)
    assert find_embeddings(Causal(4, tied=True)) == EmbeddingNames("wte.weight", "wte.weight", 1.0)


@pytest.mark.parametrize("model", [Causal(5), nn.Linear(3, 3)])
def test_a_model_without_embeddings_raises(model: nn.Module) -> None:
    with pytest.raises(UnitError, match="has no embedding and unembedding of the same shape"):
        find_embeddings(model)

"""Families of models that custom loops record exactly, by the name that the docs give them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from custom_loops import D, Small, V, loss_of
from exact_loops import ADAMW, TOKENS, kind, train
from loop_session import Session
from torch import Tensor, nn
from torch.nn import functional as F


def hugging_face() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def supervised(
    session: Session,
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    **more: Any,
) -> None:
    """Take two steps on inputs [N, …] and targets [N, …], with the mean loss over datums."""
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=len(inputs), **more) as recorder:
        for ids in ([0, 1, 2], [5, 3, 4]):
            recorder.datums(ids)
            loss(model(inputs[ids]), target[ids]).backward()
            session.expect({i: lambda i=i: loss(model(inputs[[i]]), target[[i]]) / 3 for i in ids})
            optimizer.step()
            optimizer.zero_grad()


@kind("regression of features, one row a datum")
def regression(session: Session) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 2))
    supervised(session, model, torch.randn(6, 5), F.mse_loss, torch.randn(6, 2))


@kind("a convolutional network on images")
def convolution(session: Session) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 4)
    )
    target_N = torch.tensor([0, 1, 2, 3, 0, 1])
    supervised(session, model, torch.randn(6, 2, 8, 8), F.cross_entropy, target_N)


@kind("tied input and output embeddings")
def tied(session: Session) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.layer = nn.Embedding(V, D), nn.Linear(D, D)

        def forward(self, token_NT: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.layer(self.embedding(token_NT))), self.embedding.weight)

    model = Tied()
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("an LSTM left out of the units by !pattern")
def recurrent(session: Session) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
            self.rnn = nn.LSTM(D, D, batch_first=True)

        def forward(self, token_NT: Tensor) -> Tensor:
            return self.out(self.rnn(self.embedding(token_NT))[0])

    model = Recurrent()
    train(session, model, ADAMW(model.parameters(), 0.01), units=["!rnn.*"])


class Experts(Small):
    """A mixture of two experts, each of which gets the tokens that a router sends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.router = nn.Linear(D, 2)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        share_NT, chosen_NT = self.router(x_NTD).softmax(-1).max(-1)
        y_NTD = torch.zeros_like(x_NTD)
        for number, expert in enumerate(self.experts):
            here = chosen_NT == number
            y_NTD[here] = expert(x_NTD[here]) * share_NT[here][:, None]
        return self.out(x_NTD + y_NTD)


@kind("routed experts, left out of the units by !pattern")
def routed(session: Session) -> None:
    model = Experts()
    train(session, model, ADAMW(model.parameters(), 0.01), units=["!experts.*"])


@kind("layers dropped at random (LayerDrop)")
def random_layers(session: Session) -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
            self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(4))
            self.kept: list[bool] | None = None

        def forward(self, token_NT: Tensor) -> Tensor:
            x_NTD = self.embedding(token_NT)
            drawn = [bool(torch.rand(()) < 0.5) for _ in self.layers]
            for layer, kept in zip(self.layers, self.kept or drawn, strict=True):
                x_NTD = x_NTD + torch.tanh(layer(x_NTD)) if kept else x_NTD
            self.drawn = drawn
            return self.out(x_NTD)

    model = Dropped()
    optimizer = ADAMW(model.parameters(), 0.01)

    def share(i: int, kept: list[bool]) -> Tensor:
        model.kept = kept
        return loss_of(model, TOKENS[[i]]) / 2

    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1], [2, 3], [4, 5], [6, 7]):
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()
            session.expect({i: partial(share, i, model.drawn) for i in ids})
            optimizer.step()
            optimizer.zero_grad()


def fast(part: Any) -> Any:
    return torch.compile(part, backend="eager")


def compiled_loop(session: Session, model: nn.Module, loss: Callable[..., Tensor]) -> None:
    """Record a model of which a part is compiled, also before the recording begins."""
    optimizer = ADAMW(model.parameters(), 0.01)
    loss(TOKENS).backward()
    optimizer.zero_grad()
    with session.record(model, optimizer, datums=12, units=["layer.*", "*.bias"]) as recorder:
        for ids in ([0, 1], [2, 3]):
            recorder.datums(ids)
            loss(TOKENS[ids]).backward()
            session.expect({i: lambda i=i: loss(TOKENS[[i]]) / 2 for i in ids})
            optimizer.step()
            optimizer.zero_grad()


@kind("torch.compile, the compiled model recorded")
def compiled(session: Session) -> None:
    model = fast(Small())
    compiled_loop(session, model, partial(loss_of, model))


@kind("torch.compile, the model inside recorded")
def compiled_inside(session: Session) -> None:
    model = Small()
    compiled_loop(session, model, partial(loss_of, fast(model)))


@kind("model.compile()")
def compiled_in_place(session: Session) -> None:
    model = Small()
    model.compile(backend="eager")
    compiled_loop(session, model, partial(loss_of, model))


@kind("torch.compile of the function that computes the loss")
def compiled_loss(session: Session) -> None:
    model = Small()
    compiled_loop(session, model, fast(partial(loss_of, model)))


@kind("torch.compile of one layer")
def compiled_layer(session: Session) -> None:
    model = Small()
    model.layer.compile(backend="eager")
    compiled_loop(session, model, partial(loss_of, model))


# --- Hugging Face ---------------------------------------------------------------------------------


def language_model(session: Session, config: str, model: str, **shape: Any) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    made = getattr(hf, model)(getattr(hf, config)(vocab_size=V, **shape))

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return model(input_ids=token_NT, labels=token_NT).loss

    train(session, made, ADAMW(made.parameters(), 0.01), loss=loss)


LLAMA = {
    **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16},
}


@kind("GPT-2 (learned positions, Conv1D, tied weights)")
def gpt2(session: Session) -> None:
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    language_model(session, "GPT2Config", "GPT2LMHeadModel", **shape, **off)


@kind("Llama (rotary positions, RMSNorm, grouped queries)")
def llama(session: Session) -> None:
    language_model(session, "LlamaConfig", "LlamaForCausalLM", **LLAMA)


@kind("Qwen3 (queries and keys normalized by head)")
def qwen3(session: Session) -> None:
    language_model(session, "Qwen3Config", "Qwen3ForCausalLM", head_dim=4, **LLAMA)


@kind("GPT-NeoX (parallel attention and MLP)")
def gpt_neox(session: Session) -> None:
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    language_model(session, "GPTNeoXConfig", "GPTNeoXForCausalLM", **shape, **heads)


@kind("OPT (positions from an attention mask)")
def opt(session: Session) -> None:
    shape = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    off = {"max_position_embeddings": 16, "dropout": 0.0, "word_embed_proj_dim": 8}
    language_model(session, "OPTConfig", "OPTForCausalLM", **shape, **off)


@kind("BERT, masked language modelling")
def bert(session: Session) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = hf.BertConfig(vocab_size=V, num_attention_heads=2, **shape, **off)
    model = hf.BertForMaskedLM(config)

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        label_NT = torch.full_like(token_NT, -100)
        label_NT[:, 2::2] = token_NT[:, 2::2]
        input_NT = token_NT.clone()
        input_NT[:, 2::2] = 0
        return model(input_ids=input_NT, labels=label_NT).loss

    train(session, model, ADAMW(model.parameters(), 0.01), loss=loss)


@kind("T5 (encoder and decoder, relative positions)")
def t5(session: Session) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    config = hf.T5Config(vocab_size=V, dropout_rate=0.0, decoder_start_token_id=0, **shape)
    model = hf.T5ForConditionalGeneration(config)

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return model(input_ids=token_NT, labels=token_NT.flip(1)).loss

    train(session, model, ADAMW(model.parameters(), 0.01), loss=loss)


@kind("a vision transformer (ViT)")
def vit(session: Session) -> None:
    hf = hugging_face()
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    image = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    inner = hf.ViTForImageClassification(hf.ViTConfig(num_labels=4, **shape, **image, **off))

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image_NCHW: Tensor) -> Tensor:
            return self.inner(image_NCHW).logits

    target_N = torch.tensor([0, 1, 2, 3, 0, 1])
    units = ["!*cls_token", "!*position_embeddings"]
    images = torch.randn(6, 2, 8, 8)
    supervised(session, Logits(), images, F.cross_entropy, target_N, units=units)

"""Losses, models and optimizers with which custom loops are refused."""

import torch
from custom_loops import D, Small, V, loss_of
from exact_loops import ADAMW, SGD
from exact_models import Encoder, Experts
from loop_session import Session
from refused_loops import kind, train
from torch import Tensor, nn
from torch.nn import functional as F

from capture.errors import (
    ConfigError,
    SplitError,
    UnitError,
)

# --- datums that interact -------------------------------------------------------------------------


@kind("a contrastive loss over the batch", SplitError, "step 0: datums interact in the loss")
def contrastive(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        x_NV, y_NV = model(token_NT)[:, 0], model(token_NT.flip(1))[:, 0]
        return F.cross_entropy(x_NV @ y_NV.T, torch.arange(len(token_NT)))

    train(session, Small(), loss=loss)


@kind("BatchNorm in training mode", SplitError, "(BatchNorm1d) normalizes over the batch")
def batch_norm(session: Session) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = SGD(model.parameters(), 0.1)
    with session.record(model, optimizer, units=["0.*", "3.*"]):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()


@kind("a loss that is normalized over the batch", SplitError, "step 0: datums interact in the loss")
def normalized_advantages(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        value_N = model(token_NT)[:, 0, 0]
        return ((value_N - value_N.mean()) / value_N.std()).relu().sum()

    train(session, Small(), loss=loss)


@kind("a router's balancing loss over the batch", SplitError, "datums interact in the loss")
def balanced(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        used_V = model(token_NT).softmax(-1).mean((0, 1))
        return loss_of(model, token_NT) + used_V.square().sum()

    train(session, Small(), loss=loss)


# --- models and optimizers ------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.rnn = nn.LSTM(D, D, batch_first=True)
        self.out = nn.Linear(D, V)

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(token_NT))[0])


@kind("an LSTM or GRU among the units", UnitError, "is used by lstm, which capture cannot split")
def recurrent(session: Session) -> None:
    train(session, Recurrent())


@kind(
    "nn.MultiheadAttention among the units",
    UnitError,
    "layer.self_attn.in_proj_weight: is used by multi_head_attention_forward, which capture cannot",
)
def attention_of_torch(session: Session) -> None:
    train(session, Encoder(batch_first=True))


@kind(
    "positions before the batch inside the model (nn.TransformerEncoderLayer by default)",
    UnitError,
    "no multiple of 4 datums, which capture cannot split per datum",
)
def time_first(session: Session) -> None:
    train(session, Encoder(batch_first=False), units=["!*self_attn*"])


@kind("a head on chosen tokens, h[mask]", SplitError, "the model selects rows")
def chosen_tokens(session: Session) -> None:
    class Chosen(Small):
        def forward(self, token_NT: Tensor) -> Tensor:
            return self.out(torch.tanh(self.layer(self.embedding(token_NT)))[token_NT > 4])

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return F.cross_entropy(model(token_NT), token_NT[token_NT > 4], reduction="sum")

    train(session, Chosen(), loss=loss)


@kind("routed experts among the units", UnitError, "no multiple of 4 datums, which capture cannot")
def routed(session: Session) -> None:
    train(session, Experts())


@kind("weights that are not float32", UnitError, "embedding.weight: is bfloat16, must be float32")
def half_weights(session: Session) -> None:
    train(session, Small().bfloat16())


@kind("another optimizer", ConfigError, "optimizer: is RMSprop, whose updates cannot be decomposed")
def other_optimizer(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=torch.optim.RMSprop(model.parameters()))


@kind("amsgrad, maximize, dampening", ConfigError, "optimizer: is AdamW with amsgrad=True")
def amsgrad(session: Session) -> None:
    model = Small()
    train(session, model, optimizer=ADAMW(model.parameters(), amsgrad=True))


@kind("an optimizer of another model", ConfigError, "optimizer: trains no parameter of the model")
def foreign_optimizer(session: Session) -> None:
    train(session, Small(), optimizer=ADAMW(Small().parameters(), 0.01))


@kind(
    "a frozen parameter named in units", ConfigError, "is not a parameter that the optimizer trains"
)
def frozen_unit(session: Session) -> None:
    model = Small()
    model.embedding.requires_grad_(False)
    train(session, model, units=["*"])

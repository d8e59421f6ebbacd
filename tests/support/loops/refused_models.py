"""Losses, models and optimizers with which custom loops are refused."""

from typing import Any

import torch
from custom_loops import Small, V, loss_of
from exact_attention import Encoder
from exact_experts import mixtral
from exact_families import deberta, hugging_face, masked_loss
from exact_loops import SGD
from exact_models import Experts
from exact_modules import Custom, Recurrent
from loop_session import Session
from refused_loops import TOKENS, kind, train
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from capture.errors import (
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


class Contrast(torch.autograd.Function):
    """Computes a contrastive loss and its gradient where no torch function is seen."""

    @staticmethod
    def forward(ctx: Any, x_NV: Tensor, y_NV: Tensor) -> Tensor:
        with torch.enable_grad():
            pair = [z.detach().requires_grad_() for z in (x_NV, y_NV)]
            loss = F.cross_entropy(pair[0] @ pair[1].T, torch.arange(len(x_NV)))
        ctx.grads = torch.autograd.grad(loss, pair)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grads[0] * own for own in ctx.grads)


@kind(
    "a contrastive loss in a custom autograd.Function",
    SplitError,
    "step 0: datums interact in the loss, or between calls of the model: the gradient at",
)
def custom_contrast(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return Contrast.apply(model(token_NT)[:, 0], model(token_NT.flip(1))[:, 0])

    train(session, Small(), loss=loss)


@kind(
    "a contrastive loss started by torch.autograd.backward",
    SplitError,
    "step 0: datums interact in the loss, or between",
)
def started_otherwise(session: Session) -> None:
    model = Small()
    optimizer = SGD(model.parameters(), 0.1)
    with session.record(model, optimizer) as recorder:
        recorder.datums([0, 1, 2, 3])
        x_NV = model(TOKENS[:4])[:, 0]
        torch.autograd.backward(F.cross_entropy(x_NV @ x_NV.T, torch.arange(4)))
        optimizer.step()


@kind(
    "a contrastive loss over all processes (all_gather, all_reduce of outputs)",
    SplitError,
    "step 0: datums of all processes interact in the loss, which uses all_gather of",
)
def gathered_contrast(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        x_NV = model(token_NT)[:, 0]
        parts = [torch.empty(x_NV.shape)]
        distributed.all_gather(parts, x_NV.detach())
        return F.cross_entropy(x_NV @ torch.cat(parts).T, torch.arange(len(x_NV)))

    store = distributed.HashStore()  # pyright: ignore
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        train(session, Small(), loss=loss)
    finally:
        distributed.destroy_process_group()


@kind(
    "weights of datums that are normalized over the batch without gradients",
    SplitError,
    "step 0: datums interact in the loss",
)
def detached_weights(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        value_N = model(token_NT)[:, 0, 0]
        with torch.no_grad():
            advantage_N = (value_N - value_N.mean()) / value_N.std()
        return (advantage_N * value_N).sum()

    train(session, Small(), loss=loss)


@kind(
    "normalization over the batch between parts of the model",
    SplitError,
    "or between calls of the model: the gradient at the outputs of datum",
)
def normalized_between(session: Session) -> None:
    def loss(model: Any, token_NT: Tensor) -> Tensor:
        x_NTD = model.embedding(token_NT[:, :-1])
        logit_NTV = model.out(model.norm(x_NTD / x_NTD.std(0)))
        return F.cross_entropy(logit_NTV.flatten(0, 1), token_NT[:, 1:].flatten())

    train(session, Small(), loss=loss, units=["!layer.*"])


@kind(
    "outputs with positions first, and a contrastive loss",
    SplitError,
    "step 0: datums interact in",
)
def contrast_of_positions_first(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        x_TNV = model(token_NT).transpose(0, 1)
        return F.cross_entropy(x_TNV[0] @ x_TNV[1].T, torch.arange(len(token_NT)))

    train(session, Small(), loss=loss)


# --- models and optimizers ------------------------------------------------------------------------


@kind(
    "an LSTM with dropout between its layers",
    UnitError,
    "is used by lstm; LSTM draws random numbers (dropout), which capture cannot split",
)
def recurrent(session: Session) -> None:
    train(session, Recurrent(nn.LSTM, batch_first=True, num_layers=2, dropout=0.1))


@kind(
    "BatchNorm in training mode among the units",
    UnitError,
    "is used by batch_norm; BatchNorm2d gives other outputs for a datum alone than in its batch",
)
def batch_norm_unit(session: Session) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 1))
    optimizer = SGD(model.parameters(), 0.1)
    with session.record(model, optimizer):
        model(torch.randn(8, 2, 4, 4)).square().mean().backward()
        optimizer.step()


@kind(
    "positions before the batch inside the model (nn.TransformerEncoderLayer by default)",
    UnitError,
    "with positions before the 4 datums (its module may take batch_first=True), which",
)
def time_first(session: Session) -> None:
    train(session, Encoder(batch_first=False))


@kind(
    "positions before the batch, as many as two a datum",
    SplitError,
    "(if positions come first: say batch_first=True where its module takes it)",
)
def time_first_by_chance(session: Session) -> None:
    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return loss_of(model, token_NT.repeat(1, 2)[:, :9])

    train(session, Encoder(batch_first=False), loss=loss)


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


@kind(
    "Mixtral with the balancing loss of its router (output_router_logits=True)",
    SplitError,
    "mlp.gate.weight, used on (24, 3): the gradient captured for datum 3 of the batch differs",
)
def balanced_router(session: Session) -> None:
    mixtral(session, "grouped_mm", output_router_logits=True, router_aux_loss_coef=0.1)


@kind(
    "DeBERTa-v2 with relative positions, their embedding among the units",
    UnitError,
    "rel_embeddings.weight: is used by __getitem__, which capture cannot split per datum",
)
def relative_positions(session: Session) -> None:
    train(session, deberta(relative=True), loss=masked_loss)


@kind("XLNet (positions before the batch)", UnitError, "with positions before the 4 datums")
def xlnet(session: Session) -> None:
    hf = hugging_face()
    shape = {"d_model": 8, "d_inner": 12, "n_layer": 2, "n_head": 2}
    model = hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=V, dropout=0.0, **shape))
    train(session, model, loss=masked_loss)


@kind(
    "a unit used by a custom autograd.Function",
    UnitError,
    "out.weight: is used by the custom Product, which capture cannot split per datum",
)
def custom_layer(session: Session) -> None:
    train(session, Custom())


@kind("weights that are not float32", UnitError, "embedding.weight: is bfloat16, must be float32")
def half_weights(session: Session) -> None:
    train(session, Small().bfloat16())

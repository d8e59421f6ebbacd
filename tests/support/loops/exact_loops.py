"""Kinds of custom training loops that are recorded exactly, by the name that the docs give them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from custom_loops import D, Small, V, loss_of, tokens
from loop_session import Session, Share
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
Loop = Callable[[Session], None]
EXACT: dict[str, Loop] = {}
TOKENS = tokens()


def kind(name: str) -> Callable[[Loop], Loop]:
    def add(loop: Loop) -> Loop:
        EXACT[name] = loop
        return loop

    return add


def shares_of(
    model: nn.Module, ids: list[int], loss: Callable[..., Tensor] = loss_of
) -> dict[int, Share]:
    """Return each datum's part of the mean loss of a batch of datums of equal length."""
    return {i: lambda i=i: loss(model, TOKENS[[i]]) / len(ids) for i in ids}


def train(
    session: Session,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[..., Tensor] = loss_of,
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
    set_to_none: bool = True,
    steps: int = 2,
    **more: Any,
) -> None:
    """Take steps of 4 datums each."""
    with session.record(model, optimizer, datums=12, **more) as recorder:
        for step in range(steps):
            ids = [(5 * step + i) % 12 for i in range(4)]
            recorder.datums(ids)
            loss(model, TOKENS[ids]).backward()
            before_step()
            session.expect(shares_of(model, ids, loss))
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            after_step()


# --- optimizers -----------------------------------------------------------------------------------


def optimizers() -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    def grouped(m: nn.Module) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in m.parameters() if p.dim() > 1]},
            {"params": [p for p in m.parameters() if p.dim() == 1], "lr": 0.0, "weight_decay": 0.0},
        ]
        return ADAMW(groups, lr=0.01, weight_decay=0.1)

    return {
        "SGD": lambda m: SGD(m.parameters(), 0.1),
        "SGD with momentum and decay": lambda m: SGD(
            m.parameters(), 0.1, momentum=0.9, weight_decay=0.01
        ),
        "SGD with Nesterov momentum": lambda m: SGD(
            m.parameters(), 0.1, momentum=0.9, nesterov=True
        ),
        "SGD, fused": lambda m: SGD(m.parameters(), 0.1, momentum=0.9, fused=True),
        "Adam with L2 decay": lambda m: ADAM(m.parameters(), 0.01, weight_decay=0.1),
        "AdamW with parameter groups, one with learning rate 0": grouped,
        "AdamW, foreach": lambda m: ADAMW(m.parameters(), 0.01, foreach=True),
        "AdamW, fused": lambda m: ADAMW(m.parameters(), 0.01, fused=True),
    }


def with_optimizer(make: Callable[[nn.Module], torch.optim.Optimizer], session: Session) -> None:
    model = Small()
    train(session, model, make(model), steps=3)


for _name, _make in optimizers().items():
    EXACT[_name] = partial(with_optimizer, _make)


@kind("a learning rate schedule")
def schedule(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    train(session, model, optimizer, after_step=plan.step, steps=4)


@kind("an optimizer in a wrapper (accelerate, Fabric, a TrainerCallback's)")
def wrapped_optimizer(session: Session) -> None:
    class Wrapper(torch.optim.Optimizer):
        """Keeps its optimizer and has no hooks of its own, like accelerate's."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore
            return self.optimizer.param_groups

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.optimizer.zero_grad(set_to_none)

    model = Small()
    train(session, model, Wrapper(ADAMW(model.parameters(), 0.01)))


@kind("a step with a closure (Lightning's automatic optimization)")
def closure(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):

            def forward_and_backward(ids: list[int] = ids) -> Tensor:
                recorder.datums(ids)
                optimizer.zero_grad()
                loss = loss_of(model, TOKENS[ids])
                loss.backward()
                return loss

            session.expect(shares_of(model, ids))
            optimizer.step(closure=forward_and_backward)


# --- gradients ------------------------------------------------------------------------------------


@kind("clipping of the total norm")
def clipping(session: Session) -> None:
    model = Small()
    clip = partial(nn.utils.clip_grad_norm_, list(model.parameters()), 0.1)
    train(session, model, ADAMW(model.parameters(), 0.01), before_step=clip)


@kind("zero_grad(set_to_none=False)")
def zeros_kept(session: Session) -> None:
    model = Small()
    train(session, model, SGD(model.parameters(), 0.1, momentum=0.9), set_to_none=False)


@kind("micro-batches of unequal size and length")
def micro_batches(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for pieces in ([[0, 1, 2], [3]], [[4], [5, 6]]):
            shares: dict[int, Share] = {}
            for number, ids in enumerate(pieces):
                recorder.datums(ids)
                (loss_of(model, TOKENS[ids, number:]) / 2).backward()
                for i in ids:
                    shares[i] = lambda i=i, number=number, ids=ids: (
                        loss_of(model, TOKENS[[i], number:]) / len(ids) / 2
                    )
            session.expect(shares)
            optimizer.step()
            optimizer.zero_grad()


@kind("gradients discarded before a step (zero_grad without step)")
def discarded(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1], [2, 3]):
            recorder.datums([8, 9, 10])
            loss_of(model, TOKENS[8:11]).backward()
            optimizer.zero_grad()
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()
            session.expect(shares_of(model, ids))
            optimizer.step()
            optimizer.zero_grad()


def scaled(session: Session, *, fused: bool, unscale: bool, overflow: bool) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    with session.record(model, optimizer, datums=12) as recorder:
        for step, ids in enumerate([[0, 1, 2], [3, 4], [5, 6]]):
            recorder.datums(ids)
            skipped = overflow and step == 1
            loss = loss_of(model, TOKENS[ids]) * (torch.inf if skipped else 1.0)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if not skipped:
                session.expect(shares_of(model, ids))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


EXACT["GradScaler"] = partial(scaled, fused=False, unscale=False, overflow=False)
EXACT["GradScaler with unscale_ and clipping"] = partial(
    scaled, fused=False, unscale=True, overflow=False
)
EXACT["GradScaler that skips a step"] = partial(scaled, fused=False, unscale=False, overflow=True)
EXACT["GradScaler with a fused optimizer"] = partial(
    scaled, fused=True, unscale=False, overflow=False
)
EXACT["GradScaler with a fused optimizer, unscale_ and clipping"] = partial(
    scaled, fused=True, unscale=True, overflow=False
)
EXACT["GradScaler with a fused optimizer that skips a step"] = partial(
    scaled, fused=True, unscale=False, overflow=True
)


class SparseModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D, sparse=True)
        self.out = nn.Linear(D, V)

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(token_NT)))


def sparse(session: Session, momentum: float) -> None:
    model = SparseModel()
    train(session, model, SGD(model.parameters(), 0.1, momentum=momentum), steps=3)


EXACT["a sparse embedding"] = partial(sparse, momentum=0.0)
EXACT["a sparse embedding with momentum"] = partial(sparse, momentum=0.9)


class Layers(nn.Module):
    """Three layers, each of which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.left_out: int | None = None

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        for number, layer in enumerate(self.layers):
            if number != self.left_out:
                x_NTD = x_NTD + torch.tanh(layer(x_NTD))
        return self.out(x_NTD)


def layer_drop(
    session: Session, optimizer: torch.optim.Optimizer, model: Layers, *, set_to_none: bool
) -> None:
    with session.record(model, optimizer, datums=12) as recorder:
        for step, ids in enumerate([[0, 1], [2, 3], [4, 5], [6, 7]]):
            model.left_out = (None, 0, 2, 0)[step]
            recorder.datums(ids)
            loss_of(model, TOKENS[ids]).backward()

            def share(i: int, left_out: int | None = model.left_out) -> Tensor:
                model.left_out = left_out
                return loss_of(model, TOKENS[[i]]) / 2

            session.expect({i: partial(share, i) for i in ids})
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)


@kind("a layer or expert that a step leaves out (gradient None)")
def left_out(session: Session) -> None:
    model = Layers()
    layer_drop(session, ADAMW(model.parameters(), 0.01), model, set_to_none=True)


@kind("a layer or expert that a step leaves out (gradient 0, momentum moves it)")
def left_out_with_momentum(session: Session) -> None:
    model = Layers()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    layer_drop(session, optimizer, model, set_to_none=False)


@kind("a layer that one micro-batch of a step leaves out")
def left_out_of_a_micro_batch(session: Session) -> None:
    model = Layers()
    optimizer = ADAMW(model.parameters(), 0.01)

    def loss(i: int, left_out: int | None) -> Tensor:
        model.left_out = left_out
        return loss_of(model, TOKENS[[i]]) / 2

    with session.record(model, optimizer, datums=12) as recorder:
        for first in (1, None):
            for i, left in ((0, first), (1, 2)):
                recorder.datums([i])
                loss(i, left).backward()
            session.expect({0: partial(loss, 0, first), 1: partial(loss, 1, 2)})
            optimizer.step()
            optimizer.zero_grad()


# --- forward passes and losses --------------------------------------------------------------------


@kind("two forward passes of one batch (DPO, contrast of two views)")
def two_views(session: Session) -> None:
    model = Small()

    def preference(model: nn.Module, token_NT: Tensor) -> Tensor:
        chosen_NV, rejected_NV = model(token_NT)[:, 0], model(token_NT.flip(1))[:, 0]
        return -F.logsigmoid(chosen_NV - rejected_NV).mean()

    train(session, model, ADAMW(model.parameters(), 0.01), loss=preference)


@kind("two forward passes of one batch, recorder.datums before each")
def two_views_told_twice(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)

    def both(i: list[int]) -> Tensor:
        return loss_of(model, TOKENS[i]) + loss_of(model, TOKENS[i].flip(1))

    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1], [2, 3]):
            recorder.datums(ids)
            one = loss_of(model, TOKENS[ids])
            recorder.datums(ids)
            (one + loss_of(model, TOKENS[ids].flip(1))).backward()
            session.expect({i: lambda i=i: both([i]) / 2 for i in ids})
            optimizer.step()
            optimizer.zero_grad()


def two_batches(session: Session, *, together: bool) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for one, other in (([0, 1], [2, 3]), ([4, 5, 6], [7])):
            recorder.datums(one)
            first = loss_of(model, TOKENS[one])
            recorder.datums(other)
            second = loss_of(model, TOKENS[other])
            if together:
                (first + second).backward()
            else:
                first.backward()
                second.backward()
            session.expect(shares_of(model, one) | shares_of(model, other))
            optimizer.step()
            optimizer.zero_grad()


EXACT["two batches before one backward"] = partial(two_batches, together=True)
EXACT["two batches, then a backward pass for each"] = partial(two_batches, together=False)


@kind("two losses on one trunk")
def two_losses(session: Session) -> None:
    model = Small()

    def both(model: nn.Module, token_NT: Tensor) -> Tensor:
        logit_NTV = model(token_NT)
        return logit_NTV.logsumexp(-1).mean() + logit_NTV.square().mean()

    train(session, model, ADAMW(model.parameters(), 0.01), loss=both)


@kind("two backward passes through one graph")
def one_graph_twice(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1], [2, 3]):
            recorder.datums(ids)
            logit_NTV = model(TOKENS[ids])
            logit_NTV.square().mean().backward(retain_graph=True)
            logit_NTV.logsumexp(-1).mean().backward()

            def share(i: int) -> Tensor:
                logit_NTV = model(TOKENS[[i]])
                return (logit_NTV.square().mean() + logit_NTV.logsumexp(-1).mean()) / 2

            session.expect({i: partial(share, i) for i in ids})
            optimizer.step()
            optimizer.zero_grad()


def masked_loss(model: nn.Module, token_NT: Tensor, count: int | None = None) -> Tensor:
    """The mean over labels that are not -100; a third of them are."""
    label_NT = token_NT[:, 1:].where(token_NT[:, 1:] % 3 > 0, -100)
    total = F.cross_entropy(
        model(token_NT[:, :-1]).flatten(0, 1), label_NT.flatten(), reduction="sum"
    )
    return total / (count or int((label_NT >= 0).sum()))


@kind("labels of -100, and the mean over all others of the batch")
def masked(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1, 2], [3, 4, 5]):
            recorder.datums(ids)
            masked_loss(model, TOKENS[ids]).backward()
            count = int((TOKENS[ids, 1:] % 3 > 0).sum())
            session.expect(
                {i: lambda i=i, c=count: masked_loss(model, TOKENS[[i]], c) for i in ids}
            )
            optimizer.step()
            optimizer.zero_grad()


@kind("a weight for each datum (policy gradient, importance weights)")
def weighted(session: Session) -> None:
    model = Small()

    def policy(model: nn.Module, token_NT: Tensor) -> Tensor:
        reward_N = token_NT[:, 0].float() - 4
        log_NTV = model(token_NT[:, :-1]).log_softmax(-1)
        taken_NT = log_NTV.gather(2, token_NT[:, 1:, None])[..., 0]
        return -(reward_N * taken_NT.sum(1)).mean()

    train(session, model, ADAMW(model.parameters(), 0.01), loss=policy)


@kind("distillation from a teacher without gradients")
def distillation(session: Session) -> None:
    model, teacher = Small(), Small(seed=1)

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_NTV = teacher(token_NT).softmax(-1)
        return -(wanted_NTV * model(token_NT).log_softmax(-1)).sum(-1).mean()

    train(session, model, ADAMW(model.parameters(), 0.01), loss=loss)


@kind("evaluations between the steps, with and without no_grad")
def evaluations(session: Session) -> None:
    model = Small()

    def evaluate() -> None:
        loss_of(model, TOKENS)
        with torch.no_grad():
            loss_of(model, TOKENS[:5])

    train(
        session, model, ADAMW(model.parameters(), 0.01), after_step=evaluate, before_step=evaluate
    )


@kind("a moving average of the weights beside the model")
def moving_average(session: Session) -> None:
    model = Small()
    average = torch.optim.swa_utils.AveragedModel(model)
    update = partial(average.update_parameters, model)
    train(session, model, ADAMW(model.parameters(), 0.01), after_step=update)


@kind("backward started by torch.autograd.backward (its loss is not recorded)")
def autograd_backward(session: Session) -> None:
    model = Small()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer) as recorder:
        recorder.datums([3, 5])
        torch.autograd.backward(loss_of(model, TOKENS[[3, 5]]))
        session.expect(shares_of(model, [3, 5]))
        optimizer.step()


@kind("a generator against a discriminator with its own optimizer")
def adversarial(session: Session) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    critic = nn.Linear(2, 1)
    optimizer, other = ADAM(model.parameters(), 0.01), ADAM(critic.parameters(), 0.01)
    noise_NI = torch.randn(8, 3)
    with session.record(model, optimizer, datums=8) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):
            critic(model(noise_NI[ids]).detach()).mean().backward()
            other.step()
            other.zero_grad()
            weights = {name: x.detach().clone() for name, x in critic.state_dict().items()}
            recorder.datums(ids)
            critic(model(noise_NI[ids])).mean().backward()

            def share(i: int, weights: dict[str, Tensor] = weights) -> Tensor:
                return (
                    torch.func.functional_call(critic, weights, (model(noise_NI[[i]]),)).mean() / 4
                )

            session.expect({i: partial(share, i) for i in ids})
            optimizer.step()
            optimizer.zero_grad()
            other.zero_grad()


@kind("gradient checkpointing with use_reentrant=False")
def checkpointing(session: Session) -> None:
    class Checkpointed(Small):
        def forward(self, token_NT: Tensor) -> Tensor:
            x_NTD = self.embedding(token_NT)
            y_NTD = checkpoint(self.layer, x_NTD, use_reentrant=False)
            assert isinstance(y_NTD, Tensor)
            return self.out(self.norm(x_NTD + torch.tanh(y_NTD)))

    model = Checkpointed()
    train(session, model, ADAMW(model.parameters(), 0.01))


# --- units ----------------------------------------------------------------------------------------


@kind("frozen layers with default units")
def frozen(session: Session) -> None:
    model = Small()
    model.embedding.requires_grad_(False)
    model.norm.requires_grad_(False)
    train(session, model, ADAMW(model.parameters(), 0.01))


@kind("an optimizer that trains a part of the model, with default units")
def trained_in_part(session: Session) -> None:
    model = Small()
    train(session, model, ADAMW(model.layer.parameters(), 0.01), after_step=model.zero_grad)


@kind("units left out by !pattern")
def excluded(session: Session) -> None:
    model = Small()
    train(session, model, ADAMW(model.parameters(), 0.01), units=["*", "!embedding.*", "!*.bias"])


@kind("low-rank adapters (LoRA)")
def adapters(session: Session) -> None:
    class Adapted(Small):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)
            self.lora_a = nn.Linear(D, 2, bias=False)
            self.lora_b = nn.Linear(2, D, bias=False)

        def forward(self, token_NT: Tensor) -> Tensor:
            x_NTD = self.embedding(token_NT)
            return self.out(self.norm(self.layer(x_NTD) + self.lora_b(self.lora_a(x_NTD))))

    model = Adapted()
    train(session, model, ADAMW(model.parameters(), 0.01))

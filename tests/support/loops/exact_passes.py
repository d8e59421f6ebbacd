"""Forward passes and losses of custom loops that are recorded exactly."""

from functools import partial

import torch
from custom_loops import Small, loss_of
from exact_loops import ADAM, ADAMW, EXACT, TOKENS, kind, shares_of, train
from loop_session import Session
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint


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


@kind("datums of unequal length, padded by the loop, found by their tokens")
def unequal(session: Session) -> None:
    model, rows = Small(), [row.tolist() for row in TOKENS]
    datums = [row[: 2 + i % 4] for i, row in enumerate(rows)]
    optimizer = ADAMW(model.parameters(), 0.01)

    def loss(ids: list[int]) -> Tensor:
        own = [torch.tensor(datums[i]) for i in ids]
        token_NT = pad_sequence([token_T[:-1] for token_T in own], batch_first=True)
        label_NT = pad_sequence([token_T[1:] for token_T in own], True, -100.0)
        return F.cross_entropy(model(token_NT).flatten(0, 1), label_NT.flatten(), reduction="sum")

    with session.record(model, optimizer, datums=datums):
        for ids in ([11, 3, 4], [7, 8, 9], [3, 9]):
            loss(ids).backward()
            session.expect({i: lambda i=i: loss([i]) for i in ids})
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


@kind("averaged weights put into the model for an evaluation, and taken out again")
def average_evaluated(session: Session) -> None:
    model = Small()
    average = torch.optim.swa_utils.AveragedModel(model)

    def evaluate() -> None:
        average.update_parameters(model)
        own = {name: x.clone() for name, x in model.state_dict().items()}
        model.load_state_dict(average.module.state_dict())
        with torch.no_grad():
            loss_of(model, TOKENS)
        model.load_state_dict(own)

    train(session, model, ADAMW(model.parameters(), 0.01), after_step=evaluate)


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

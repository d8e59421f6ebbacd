"""Loops for one process or several, recorded by ``ontogeny.record``."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from custom_loops import D, Small, V, tokens
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.custom_loop.recording import Recording
from capture.format import checkpoint
from capture.process_group import DistributedGroup, Group, SingleProcess
from capture.shifts.outliers import OutlierConfig
from capture.store import Store

STEPS, DATUMS, BATCH = 5, 24, 12
MakeOptimizer = Callable[..., torch.optim.Optimizer]


class Numbered(SingleProcess):
    """One rank of several, for a process that plays all of them in turn."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Branching(Small):
    """Leaves its layer out of some passes; the loop sets ``skips``."""

    skips = False

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        if self.skips:
            return self.out(self.norm(x_NTD))
        return self.out(self.norm(x_NTD + torch.tanh(self.layer(x_NTD))))


class Products(Small):
    """Consists of products alone, which CPUs round to bfloat16 as the audit expects."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.embedding, self.norm = nn.Identity(), nn.Identity()
        self.layer = nn.Linear(V, D)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTV = F.one_hot(token_NT, V).to(self.layer.weight.dtype)
        return self.out(torch.tanh(self.layer(x_NTV)))


class Remembering(Small):
    """Has a module that runs again for each datum."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.layer = nn.GRU(D, D, batch_first=True)  # pyright: ignore

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        return self.out(self.norm(x_NTD + self.layer(x_NTD)[0]))


@dataclass(frozen=True)
class Setting:
    """A kind of loop."""

    optimizer: MakeOptimizer = torch.optim.SGD
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1, "momentum": 0.9})
    micro_batches: int = 1
    sync_always: bool = False
    """Whether gradients are averaged after every micro-batch, not after the last alone."""
    model: type[Small] = Small
    wrapper: dict[str, Any] = field(default_factory=dict)
    clip: float = 1e9
    clip_value: float = 0.0
    """At which entries of gradients are clipped; 0: they are not."""
    ids: bool = True
    """Whether the loop gives the ids of its datums."""
    tokens: bool = False
    """Whether the run knows the tokens of its datums."""
    bfloat16: bool = False
    sharded: bool = False
    """Whether several ranks shard the model by ``fully_shard``; else they average gradients."""
    uneven: bool = False
    """Whether the first rank has more datums in the last step."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``record``."""


ADAMW = {"lr": 0.01, "weight_decay": 0.1}
FACTORS = {"factors": FactorConfig(enabled=True)}
SETTINGS = {
    "clipped": Setting(clip=0.3, more=FACTORS),
    "clipped by value": Setting(clip_value=0.01, more=FACTORS),
    "sharded clipped by value": Setting(sharded=True, clip_value=0.01, more=FACTORS),
    "chosen steps": Setting(
        more={
            "outliers": OutlierConfig(k=20, steps=["2"]),
            "factors": FactorConfig(enabled=True, steps=["0", "4"]),
        }
    ),
    "adamw": Setting(torch.optim.AdamW, ADAMW, micro_batches=2, more=FACTORS),
    "synced": Setting(micro_batches=3, sync_always=True),
    "numbered": Setting(ids=False, more={"outliers": OutlierConfig(k=30, scope="step")}),
    "tokens": Setting(ids=False, tokens=True),
    "uneven": Setting(uneven=True, more=FACTORS),
    "branching": Setting(
        model=Branching, options={"lr": 0.1}, wrapper={"find_unused_parameters": True}, more=FACTORS
    ),
    "static": Setting(wrapper={"static_graph": True, "gradient_as_bucket_view": True}),
    "rounded": Setting(bfloat16=True, micro_batches=2),
    "remembering": Setting(
        torch.optim.NAdam, {"lr": 0.01}, micro_batches=2, model=Remembering, more=FACTORS
    ),
    "sharded": Setting(sharded=True, clip=0.3, more=FACTORS),
    "sharded rmsprop": Setting(torch.optim.RMSprop, {"lr": 0.01}, sharded=True, more=FACTORS),
    "sharded adamw": Setting(torch.optim.AdamW, ADAMW, sharded=True, micro_batches=2, more=FACTORS),
    "sharded synced": Setting(sharded=True, micro_batches=3, sync_always=True),
    "sharded rounded": Setting(sharded=True, bfloat16=True, micro_batches=2, model=Products),
}


LOSS = {"rounded": 2.0**-8, "sharded rounded": 2.0**-6}
"""Relative tolerance of losses, if larger: roundings of bfloat16 differ with the batch."""
SLOW = {"synced", "tokens", "static", "sharded synced"}
"""Kinds of loops that only four ranks record."""


def batch_of(step: int) -> np.ndarray:
    """Return the datums of a step, of all ranks, in order of slots."""
    return np.random.default_rng((step, 1)).permutation(DATUMS)[:BATCH]


def share(setting: Setting, id_N: np.ndarray, step: int, group: Group) -> np.ndarray:
    """Return the datums of a rank; they differ in number in the last step of an uneven loop."""
    if setting.uneven and step == STEPS - 1:
        id_N = id_N[: BATCH - 1]
    return np.array_split(id_N, group.size)[group.rank]


def loss_of(setting: Setting, model: nn.Module, id_N: np.ndarray) -> Tensor:
    token_NT = tokens(DATUMS)[torch.from_numpy(id_N)]
    autocast = setting.bfloat16 and not isinstance(model, FSDPModule)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logit_NTV = model(token_NT[:, :-1])
    return F.cross_entropy(logit_NTV.float().flatten(0, 1), token_NT[:, 1:].flatten())


@contextmanager
def recorded(
    setting: Setting, folder: Path, name: str, group: Group, **more: Any
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer, Recording]]:
    """Yield model, optimizer and recording of a rank."""
    seed = 0 if setting.sharded else group.rank  # the wrapper takes the weights of rank 0
    model: nn.Module = (small := setting.model(seed=seed))
    if setting.sharded and not isinstance(group, SingleProcess):
        sharded(small, setting)
    elif group.size > 1:
        model = DistributedDataParallel(model, **setting.wrapper)
    optimizer = setting.optimizer(model.parameters(), **setting.options)
    described = tokens(DATUMS) if setting.tokens else DATUMS if setting.ids else None
    arguments = {"outliers": OutlierConfig(k=20), "segment_steps": 2, **setting.more, **more}
    run = str(folder / name)
    with record(model, optimizer, run=run, datums=described, **arguments) as recorder:
        yield model, optimizer, recorder


def sharded(model: Small, setting: Setting) -> None:
    """Shard a layer and the rest of a model over all processes."""
    policy = MixedPrecisionPolicy()
    if setting.bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fully_shard(model.layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)


def train(setting: Setting, folder: Path, name: str, group: Group, **more: Any) -> None:
    """Record a whole loop; each rank calls this."""
    with recorded(setting, folder, name, group, **more) as (model, optimizer, recorder):
        for step in range(STEPS):
            take_step(setting, model, optimizer, recorder, step, [group])


def train_alone(setting: Setting, folder: Path, name: str, size: int) -> None:
    """Record in one process what so many ranks record together: rank by rank, loss by loss."""
    ranks: list[Group] = [Numbered(rank, size) for rank in range(size)]
    with recorded(setting, folder, name, SingleProcess()) as (model, optimizer, recorder):
        for step in range(STEPS):
            take_step(setting, model, optimizer, recorder, step, ranks)


def take_step(
    setting: Setting,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recorder: Recording | None,
    step: int,
    ranks: list[Group],
) -> None:
    """Take a step with the shares of these ranks, each loss weighed as the wrapper weighs it."""
    optimizer.zero_grad()
    for rank in ranks:
        if recorder and isinstance(recorder.model, Branching):
            recorder.model.skips = rank.rank == step % 2
        parts = np.array_split(share(setting, batch_of(step), step, rank), setting.micro_batches)
        for number, id_N in enumerate(parts):
            if recorder and setting.ids:
                recorder.datums(id_N)
            with ExitStack() as stack:
                synced = setting.sync_always or number == len(parts) - 1
                if isinstance(model, DistributedDataParallel):
                    stack.enter_context(nullcontext() if synced else model.no_sync())
                if isinstance(model, FSDPModule):
                    model.set_requires_gradient_sync(synced)
                loss = loss_of(setting, model, id_N) / (setting.micro_batches * len(ranks))
                loss.backward()
    if setting.clip_value:
        nn.utils.clip_grad_value_(model.parameters(), setting.clip_value)
    nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
    optimizer.step()


# --- what two processes do ------------------------------------------------------------------------


def record_all(group: Group, folder: Path) -> None:
    """Record every kind of loop."""
    for name, setting in SETTINGS.items():
        train(setting, folder, name, group)


def train_on_ray(config: dict[str, Any]) -> None:
    """Record a loop as a worker of Ray Train, which has set up the process group."""
    group = DistributedGroup(torch.device("cpu"))
    train(SETTINGS["clipped"], Path(config["folder"]), "run", group)


def take_steps(
    setting: Setting, folder: Path, name: str, group: Group, ranks: list[Group], steps: range
) -> None:
    """Record some steps; after the first step of all, go on with the run that exists."""
    with recorded(setting, folder, name, group, resume=steps.start > 0) as parts:
        if steps.start:
            parts[-1].restore()
        for step in steps:
            take_step(setting, *parts, step, ranks)


def is_identical(name: str, group: Group, folder: Path) -> bool:
    """Return whether plain training ends at the same weights, bit for bit, as the recorded one."""
    setting = SETTINGS[name]
    model: nn.Module = (small := setting.model(seed=0))
    if setting.sharded:
        sharded(small, setting)
    else:
        model = DistributedDataParallel(model)
    optimizer = setting.optimizer(model.parameters(), **setting.options)
    for step in range(STEPS):
        take_step(setting, model, optimizer, None, step, [group])
    stored = checkpoint.read_checkpoint(Store(str(folder / name)), STEPS)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return all(torch.equal(stored[n], whole(x)) for n, x in inner.named_parameters())


def whole(x: Any) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def begin_alone(folder: Path, name: str, size: int, steps: int) -> None:
    """Record the first steps in one process, as of so many ranks."""
    ranks: list[Group] = [Numbered(rank, size) for rank in range(size)]
    take_steps(SETTINGS["adamw"], folder, name, SingleProcess(), ranks, range(steps))


def go_on_alone(folder: Path, name: str, size: int) -> None:
    """Go on in one process with a run that so many ranks have begun with two steps."""
    ranks: list[Group] = [Numbered(rank, size) for rank in range(size)]
    take_steps(SETTINGS["adamw"], folder, name, SingleProcess(), ranks, range(2, STEPS))

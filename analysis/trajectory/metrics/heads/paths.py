"""Path patching between two components: what a later one reads from an earlier one directly.

Source: Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching"; Wang et al.
2022, appendix B. On random tokens in which a block occurs twice, the other input has another block
in the first place, so that nothing can be copied. Three passes measure a path:

1. both inputs, keeping the outputs of all heads and MLPs;
2. the first input again with all of these held fixed, but for the sender's output, which is that of
   the other input: what the receiver now computes has changed through the direct path alone;
3. the first input with the receiver's output of pass 2, and all that follows computed anew.

Shapes: N sequence, T position, C widths of all heads, D width, V vocabulary.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.trajectory.metrics.row import Row, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import cross_entropy, unembedded
from analysis.trajectory.observed.text import Repeated, Text
from capture.errors import ConfigError
from capture.parts.found_parts import PartSite, laid_out
from capture.parts.parted import Parted, Replace

LOGITS = "logits"
MOST_PAIRS = 64
"""Pairs that are measured where none are named: each takes a pass of all sequences."""
MOST_SEQUENCES = 50
FORM = re.compile(r"L(\d+)(?:H(\d+)|MLP)", re.ASCII)
EXAMPLE = "As in L0H1:L1H2, L0MLP:L1H0 or L1H2:logits"


@dataclass(frozen=True)
class Component:
    """A head, an MLP, or the logits."""

    layer: int
    head: int | None = None
    """None for an MLP, and for the logits."""
    last: bool = False
    """Whether it is the logits."""

    @property
    def name(self) -> str:
        if self.last:
            return LOGITS
        return f"L{self.layer}MLP" if self.head is None else f"L{self.layer}H{self.head}"

    @property
    def place(self) -> tuple[int, bool]:
        """Order in the model: heads of a layer come before its MLP."""
        return self.layer, self.head is None


Path = tuple[Component, Component]


def path_patching(model: Observed, text: Text) -> Iterator[Row]:
    """Increase of the loss on the second block when a receiver sees a sender of the other input.

    Nats per token, over repeated random tokens. By default all pairs of heads in different layers,
    and of heads and the logits, if there are at most 64; ``--paths`` names others, MLPs included.
    Null: 0, as for two components without a direct path.
    """
    network = model.parted
    assert network
    own = text.repeated
    count = min(MOST_SEQUENCES, len(own.token_NT))
    repeated = Repeated(own.token_NT[:count], own.length_N[:count])
    paths = [parsed(path, network) for path in text.paths] or all_paths(network)
    patched = Patched.of(network, repeated, text)
    senders = list(dict.fromkeys(sender for sender, _ in paths))
    clean_N = patched.loss(patched.run({}))
    for sender in senders:
        receivers = [receiver for first, receiver in paths if first == sender]
        for receiver, state in patched.received(sender, receivers).items():
            loss_N = patched.loss(state if receiver.last else patched.run({receiver: state}))
            name = f"{sender.name} > {receiver.name}"
            yield mean_row("path_patching", name, loss_N - clean_N, 0.0)


def all_paths(model: Parted) -> list[Path]:
    """Return the pairs of heads in different layers, and each head with the logits."""
    heads = [
        Component(layer, head)
        for layer, own in enumerate(model.parts.attention)
        if own
        for head in range(own.heads)
    ]
    end = Component(len(model.parts.layers), last=True)
    pairs = [(a, b) for a in heads for b in heads if a.layer < b.layer]
    return [*pairs, *((head, end) for head in heads)]


def parsed(path: str, model: Parted) -> Path:
    """Return the two components of a path; raise ``ConfigError`` if the model lacks one."""
    names = [name.strip() for name in path.split(":")]
    if len(names) != 2:
        raise ConfigError("--paths", f"got {path!r}", EXAMPLE)
    sender, receiver = (component(name, model, path) for name in names)
    if sender.last or sender.place >= receiver.place:
        problem = f"got {path!r}, but {names[0]} does not come before {names[1]}"
        raise ConfigError("--paths", problem, EXAMPLE)
    return sender, receiver


def component(name: str, model: Parted, path: str) -> Component:
    """Return a component by its name; raise ``ConfigError`` if the model has none of this name."""
    if name == LOGITS:
        return Component(len(model.parts.layers), last=True)
    found = FORM.fullmatch(name)
    if not found:
        raise ConfigError("--paths", f"got {path!r}", EXAMPLE)
    layer, head = int(found[1]), int(found[2]) if found[2] else None
    if layer < len(model.parts.layers):
        attention = model.parts.attention[layer]
        heads = attention.heads if attention else 0
        if bool(model.parts.mlp_out[layer]) if head is None else head < heads:
            return Component(layer, head)
    problem = f"got {path!r}, but the model has no {name}"
    raise ConfigError("--paths", problem, f"It has {len(model.parts.layers)} layers")


@dataclass(frozen=True, eq=False)
class Patched:
    """A model on repeated tokens, and what its components put out on these and on the others."""

    model: Parted
    token_NT: Tensor
    repeated: Repeated
    own: dict[str, Tensor]
    """Weight → what enters it (heads, side by side) or leaves it (an MLP), in memory's order."""
    other: dict[str, Tensor]
    """Weight → the same state for the other input."""

    @classmethod
    def of(cls, model: Parted, repeated: Repeated, text: Text) -> "Patched":
        token_NT = torch.from_numpy(repeated.token_NT)
        other_NT = torch.from_numpy(without_repetition(repeated, text.num_tokens, text.seed))
        return cls(model, token_NT, repeated, outputs(model, token_NT), outputs(model, other_NT))

    def received(
        self, sender: Component, receivers: Sequence[Component]
    ) -> dict[Component, Tensor]:
        """Return what receivers put out if the sender alone is that of the other input: heads
        [N, T, C] of their layer, an MLP's output, or what enters the unembedding for the logits."""
        sent, found = weight_of(self.model, sender), {}
        wanted = {weight_of(self.model, each): each for each in receivers if not each.last}

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            reads_input = name in heads_of(self.model)
            if name in wanted:
                found[name] = (x if reads_input else linear(x)).clone()
            state = self.own[name]
            if name == sent:
                state = mixed(self.model, sender, state, self.other[name])
            return linear(state) if reads_input else state

        hidden_NTD = self.model.until_unembedding(self.token_NT, self.own, around)
        result = {each: found[weight_of(self.model, each)] for each in receivers if not each.last}
        return result | {each: hidden_NTD for each in receivers if each.last}

    def run(self, changed: dict[Component, Tensor]) -> Tensor:
        """Return what enters the unembedding with some components' outputs replaced, [N, T, D]."""
        by_weight = {weight_of(self.model, each): each for each in changed}

        def around(name: str, x: Tensor, linear: Replace) -> Tensor:
            own = by_weight[name]
            if name in heads_of(self.model):
                return linear(mixed(self.model, own, x, changed[own]))
            return changed[own]

        return self.model.until_unembedding(self.token_NT, by_weight, around)

    def loss(self, hidden_NTD: Tensor) -> np.ndarray:
        """Return the mean loss on the second block without its first token, [N]."""
        logits_NTV = unembedded(self.model, hidden_NTD)
        loss_NT = cross_entropy(logits_NTV[:, :-1], self.token_NT[:, 1:])
        lengths = self.repeated.length_N
        pairs = zip(loss_NT, lengths, strict=True)
        return np.array([loss_T[-(length - 1) :].mean() for loss_T, length in pairs])


def without_repetition(repeated: Repeated, num_tokens: int, seed: int) -> np.ndarray:
    """Return the sequences with other random tokens in place of the first block, [N, T]."""
    rng = np.random.default_rng([seed, 1])
    other_NT = repeated.token_NT.copy()
    for token_T, length in zip(other_NT, repeated.length_N, strict=True):
        unused = np.setdiff1d(np.arange(1, num_tokens), token_T)
        enough = len(unused) >= length
        source = unused if enough else np.arange(1, num_tokens)
        token_T[-2 * length : -length] = rng.choice(source, length, replace=not enough)
    return other_NT


def heads_of(model: Parted) -> set[str]:
    """Return the weights whose inputs are heads."""
    return {own.out for own in model.parts.attention if own}


def weight_of(model: Parted, own: Component) -> str:
    """Return the weight that the heads enter, or that the MLP's output leaves."""
    if own.head is None:
        weight = model.parts.mlp_out[own.layer]
    else:
        attention = model.parts.attention[own.layer]
        weight = attention.out if attention else None
    assert weight is not None
    return weight


def outputs(model: Parted, token_NT: Tensor) -> dict[str, Tensor]:
    """Return the outputs of all heads and MLPs, by weight, as they lie in the model."""
    heads = heads_of(model)
    sites = [PartSite(0, weight, "input") for weight in heads]
    sites += [PartSite(0, weight, "output") for weight in model.parts.mlp_out if weight]
    found = model.observe(token_NT, sites).at
    uses = model.parts.uses
    return {site.weight: laid_out(state, uses[site.weight].axes) for site, state in found.items()}


def mixed(model: Parted, own: Component, state: Tensor, other: Tensor) -> Tensor:
    """Return a state in which the component's part is that of another; an MLP's is all of it."""
    if own.head is None:
        return other
    attention = model.parts.attention[own.layer]
    assert attention
    width = model.parts.uses[attention.out].inputs // attention.heads
    changed = state.clone()
    entries = slice(own.head * width, (own.head + 1) * width)
    changed[..., entries] = other[..., entries]
    return changed

"""Forward passes of a custom training loop, and how those of one step are joined.

Shapes: N datum, T position, O output width, R, C rows and columns of a unit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import zip_longest

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from capture.custom_loop.packing.documents import Documents
from capture.custom_loop.passes.gradient_changes import Change
from capture.errors import UnitError
from capture.gradients.dense import join_datums
from capture.gradients.factors import Factor, Factors
from capture.gradients.memo import Memo
from capture.gradients.parameter_use import ParameterUse

LEAVE_OUT = 'Leave it out: units=["!PATTERN"]'
NO_BACKWARD = -1


@dataclass(eq=False)
class ForwardPass:
    """The forward calls that one backward pass has reached."""

    datum_N: np.ndarray | None = None
    """The datum in each slot, if the loop gave it."""
    documents: Documents | None = None
    """The documents in the rows of the batch, if these are the datums."""
    uses: dict[int, ParameterUse] = field(default_factory=dict)
    """Parameter uses whose δ has arrived, by their number in forward order."""
    inside: set[int] = field(default_factory=set)
    """Numbers of the uses within calls of the model; the loop itself has made the others."""
    unsplit: dict[str, str] = field(default_factory=dict)
    """Units that were reached and cannot be captured → the function that uses them."""
    shared: list[ParameterUse] = field(default_factory=list)
    """Uses on one row for all datums that the backward pass has reached, the last one first."""
    has_inseparable: bool = False
    """Whether a module of these units was run again for one datum, in vain."""
    losses: list[Tensor] = field(default_factory=list)
    """Scalars that ``backward`` was called on."""
    backward: int = NO_BACKWARD
    """Autograd's number of the backward pass whose δ came first."""
    has_loss: bool = False
    """Whether that backward pass began at one scalar, so that its loss is among ``losses`` of a
    pass of the step."""

    def num_datums(self) -> int:
        return self.num_rows() if self.documents is None else len(self.documents)

    def num_rows(self) -> int:
        return next(iter(self.uses.values())).num_datums

    def without_rows(self, reason: str) -> dict[str, str]:
        """Return units used on one row to which no δ of each datum came → function and reason."""
        lost = [use for use in reversed(self.shared) if use.delta is None]
        return {name: f"{use.func} {reason}" for use in lost for name in use.roles}

    def add_delta(self, number: int, use: ParameterUse, delta: Tensor) -> None:
        """Keep δ of a use; if ``backward`` goes through the same graph twice, keep the sum."""
        before = use.delta if number in self.uses else None
        use.keep_delta(delta)
        if before is not None and use.delta is not None:
            use.delta = before + use.delta
        self.uses[number] = use

    def factors(self, units: Iterable[str], cast: Callable[[Tensor], Tensor]) -> Factors:
        """Return the factors by unit; none for a unit that got no δ.

        Raises ``UnitError`` if uses differ in their number of datums.
        """
        found: Factors = {name: [] for name in units}
        num_rows = self.num_rows()
        for _, use in sorted(self.uses.items()):
            for name, role in use.roles.items():
                if use.num_datums != num_rows:
                    problem = f"is used with {use.num_datums} datums, others with {num_rows}"
                    raise UnitError(name, problem, "The first axis must be the batch everywhere")
                found[name].append(use.factor(role, cast))
        return found if self.documents is None else self.documents.split(found)


@dataclass(frozen=True)
class StepPasses:
    """All passes of a step, and what happened to the gradients."""

    passes: list[ForwardPass]
    loss_scale: float
    """Number by which a ``GradScaler`` has multiplied the loss, and divided the gradients since."""
    has_old_gradients: bool
    """Whether gradients of units were not 0 before the first backward pass."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """What the loop did to the gradients of units, if not the same to all."""


def join_passes(passes: Sequence[ForwardPass], units: Mapping[str, Tensor], where: str) -> Factors:
    """Return the factors of all passes, joined along N in order; shorter ones are padded.

    A unit that a pass does not use has factors of 0 there. Raises ``UnitError`` if the passes do
    not use a unit in the same way.
    """
    cast = Memo(Tensor.float)
    pieces = [each.factors(units, cast) for each in passes]
    if len(pieces) == 1 and all(pieces[0].values()):
        return pieces[0]  # the usual step, in which nothing is padded or lacking
    to_width = cache(lambda positions: Memo(partial(pad_positions, positions=positions)))
    for name, unit in units.items():
        uses = list(zip_longest(*(piece[name] for piece in pieces)))
        if not same_kinds(uses):
            problem = f"is used differently in the backward passes of {where}"
            raise UnitError(name, problem, LEAVE_OUT)
        uses = uses or [(None,) * len(passes)]
        for piece in pieces:
            piece[name] = []
        for same in uses:
            known = next((use for use in same if use is not None), None) or zero_factor(unit)
            same = [
                without_datums(known, each.num_datums()) if use is None else use
                for use, each in zip(same, passes, strict=True)
            ]
            widest = max(use.delta_NTO.shape[1] for use in same)
            for piece, use in zip(pieces, same, strict=True):
                piece[name].append(use.map_tensors(to_width(widest)))
    return join_datums(pieces)


def same_kinds(uses: Sequence[tuple[Factor | None, ...]]) -> bool:
    """Return whether the passes use a unit alike: as often, or all uses of one kind.

    ``uses``: a unit's first use in each pass, its second, …; None where a pass has fewer.
    """
    by_use = [
        {(use.kind, use.transposed, use.per_position) for use in same if use is not None}
        for same in uses
    ]
    lacking = any(use is None for same in uses for use in same)
    return len(set().union(*by_use)) <= 1 if lacking else all(len(kinds) == 1 for kinds in by_use)


def zero_factor(unit: Tensor) -> Factor:
    """Return the factor of a unit that is not used, with no datums yet."""
    if unit.dim() < 2:
        return Factor("sum", unit.new_zeros(0, 1, unit.numel()))
    rows_0TR, columns_0TC = (unit.new_zeros(0, 1, n) for n in (len(unit), unit[0].numel()))
    return Factor("outer", rows_0TR, columns_0TC)


def without_datums(use: Factor, num_datums: int) -> Factor:
    """Return a factor of the same form for so many datums, in which all numbers are 0."""
    return use.map_tensors(lambda x: x.new_zeros(num_datums, 1, *x.shape[2:]))


def pad_positions(x: Tensor, positions: int) -> Tensor:
    """Pad δ, a or tokens [N, T, …] with zeros to so many positions; they add nothing, as δ is 0."""
    missing = positions - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x

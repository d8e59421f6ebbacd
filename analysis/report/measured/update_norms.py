"""Find the datums in which the update norm of a neuron's named tokens arises.

Tallies add the update norm of every position to its token and keep no datums. Here the norm is
computed again, position by position, with the weights of some of the run's checkpoints:
lr · clip · ‖δ_t‖ · |a_tn|, as in ``capture.shifts.tallies``. A datum's weight for a neuron is the
sum over its positions whose token is named for the neuron. Three things differ from training:
weights are those of the nearest earlier checkpoint, nothing is dropped out, and lr · clip is a mean
over the steps until the next checkpoint.

Shapes: N datum, T position, I neuron (input of a unit), O output of a unit, K shown datum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.run.run import Run
from capture.parts import KnownModel, Parted, parted
from capture.parts.found_parts import datum_first

MAX_CHECKPOINTS = 3
"""Checkpoints that norms are computed at, spread over training."""
DATUMS_AT_ONCE = 64
DATUMS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # the neuron, a column of the unit
        pa.field("datum", pa.int32()),
        pa.field("weight", pa.float64()),  # update norm per pass over the text, units of the weight
        pa.field("position", pa.int16()),  # with the largest norm among those of named tokens
        pa.field("step", pa.int32()),  # of the checkpoint where it is largest
    ]
)
"""One row per neuron and datum, most weight first."""

Neuron = tuple[str, int]
Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class NamedDatums:
    """The datums of named tokens, and the text and checkpoints that were searched."""

    table: pd.DataFrame
    """``DATUMS``"""
    searched: int
    """Number of datums that were searched."""
    steps: tuple[int, ...]
    """Steps of the checkpoints."""


def named_datums(
    run: Run,
    named: Mapping[Neuron, Sequence[int]],
    datum_N: np.ndarray,
    *,
    by_input: bool,
    most: int,
    report: Report | None = None,
) -> NamedDatums:
    """Search some datums for the update norm of each neuron's named tokens.

    ``named`` maps neurons to token ids, which are those of targets or, with ``by_input``, of
    inputs. Returns at most ``most`` datums of each neuron. ``report`` is called with the number of
    (checkpoint, datum) pairs done and their total. Raises what ``run.parted`` raises.
    """
    scales = checkpoint_scales(run)
    units = list(dict.fromkeys(unit for unit, _ in named))
    label_NT = (run.token_NT if by_input else run.target_NT)[datum_N]
    sums = {unit: Sums.of(unit, named, len(datum_N), run.num_tokens) for unit in units}
    last_only = run.config.capture.loss_positions == "last"
    for number, (step, scale) in enumerate(scales.items()):
        model = run.parted(step)
        text = run.token_NT[datum_N], run.target_NT[datum_N]
        for block, norms in norm_blocks(model, *text, units, last_only=last_only):
            for unit, (delta_NT, input_NTI) in norms.items():
                sums[unit].add(block, scale * delta_NT, input_NTI, label_NT[block], step)
            if report:
                done = number * len(datum_N) + min(block.stop, len(datum_N))
                report(done, len(scales) * len(datum_N))
    frames = [own.frame(datum_N, most) for own in sums.values()]
    empty = DATUMS.empty_table().to_pandas()
    return NamedDatums(pd.concat([empty, *frames]), len(datum_N), tuple(scales))


def checkpoint_scales(run: Run) -> dict[int, float]:
    """Return checkpoint → mean lr · clip / datums of the steps until the next one that is used."""
    stored = [0, *(marker.end_step for marker in run.segments)][:-1] or [0]
    chosen = np.linspace(0, len(stored) - 1, min(MAX_CHECKPOINTS, len(stored))).round().astype(int)
    first = [stored[index] for index in np.unique(chosen)]
    steps = run.steps()
    size = (steps["learning_rate"] * steps["clip"] / steps["datums"].map(len)).to_numpy()
    pairs = zip(first, [*first[1:], len(steps)], strict=True)
    return {start: float(size[start:end].mean()) for start, end in pairs}


def norm_blocks(
    model: KnownModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    units: Sequence[str],
    *,
    last_only: bool,
) -> Iterator[tuple[slice, dict[str, tuple[np.ndarray, np.ndarray]]]]:
    """Yield blocks of datums with ‖δ_t‖, [N, T], and the inputs a, [N, T, I], of each unit.

    δ is the gradient of the datum's own loss, the mean over its positions; with ``last_only``, of
    the last position's part of it (``capture.loss_positions=last``).
    """
    for start in range(0, len(token_NT), DATUMS_AT_ONCE):
        block = slice(start, start + DATUMS_AT_ONCE)
        yield block, position_norms(model, token_NT[block], target_NT[block], units, last_only)


def position_norms(
    model: KnownModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    units: Sequence[str],
    last_only: bool = False,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return ‖δ_t‖ and the inputs of each unit; see ``norm_blocks``."""
    token, target = (torch.from_numpy(each_NT).long() for each_NT in (token_NT, target_NT))
    known = model if isinstance(model, Parted) else parted(model, token)
    kept = slice(-1, None) if last_only else slice(None)
    logits, states = known.with_gradients(token, units)
    with torch.enable_grad():
        target = target[:, -logits.shape[1] :].to(logits.device)  # those of the scored positions
        logits = logits[:, kept].flatten(0, 1)
        loss = F.cross_entropy(logits, target[:, kept].flatten(), reduction="sum")
        outputs = [states[unit][1] for unit in units]
        deltas = torch.autograd.grad(loss / target.shape[1], outputs)

    def laid(unit: str, state: Tensor) -> Tensor:
        return datum_first(state.detach(), known.parts.uses[unit].axes, len(token))

    return {
        unit: (laid(unit, delta).norm(dim=2).numpy(), laid(unit, states[unit][0]).numpy())
        for unit, delta in zip(units, deltas, strict=True)
    }


@dataclass(frozen=True, eq=False)
class Sums:
    """Norms of one unit's neurons that have named tokens, added up by datum."""

    unit: str
    neuron_I: np.ndarray
    """Numbers of the neurons, ascending."""
    named_VI: np.ndarray
    """Whether a token is named for a neuron."""
    weight_NI: np.ndarray
    largest_NI: np.ndarray
    """Largest norm of one position, and where it is."""
    position_NI: np.ndarray
    step_NI: np.ndarray

    @classmethod
    def of(
        cls, unit: str, named: Mapping[Neuron, Sequence[int]], num_datums: int, num_tokens: int
    ) -> "Sums":
        neuron_I = np.array(sorted(number for other, number in named if other == unit))
        named_VI = np.zeros((num_tokens, len(neuron_I)), bool)
        for column, number in enumerate(neuron_I.tolist()):
            named_VI[np.asarray(named[unit, number], np.int64), column] = True
        shape = num_datums, len(neuron_I)
        zeros = [np.zeros(shape, kind) for kind in (np.float64, np.float32, np.int16, np.int32)]
        return cls(unit, neuron_I, named_VI, *zeros)

    def add(
        self,
        block: slice,
        delta_NT: np.ndarray,
        input_NTI: np.ndarray,
        label_NT: np.ndarray,
        step: int,
    ) -> None:
        """Add the norms of a block of datums, in place."""
        norm_NTI = delta_NT[:, :, None] * np.abs(input_NTI[:, :, self.neuron_I])
        norm_NTI *= self.named_VI[label_NT]
        self.weight_NI[block] += norm_NTI.sum(1)
        position_NI = norm_NTI.argmax(1)
        found_NI = np.take_along_axis(norm_NTI, position_NI[:, None], 1)[:, 0]
        larger_NI = found_NI > self.largest_NI[block]
        for kept_NI, new_NI in (
            (self.largest_NI, found_NI),
            (self.position_NI, position_NI),
            (self.step_NI, np.full_like(position_NI, step)),
        ):
            kept_NI[block][larger_NI] = new_NI[larger_NI]

    def frame(self, datum_N: np.ndarray, most: int) -> pd.DataFrame:
        """Return ``DATUMS`` of the unit: the datums of most weight, none of weight 0."""
        order_KI = np.argsort(-self.weight_NI, axis=0, kind="stable")[:most]
        weight_KI = np.take_along_axis(self.weight_NI, order_KI, 0)
        column = np.broadcast_to(np.arange(len(self.neuron_I)), order_KI.shape)
        kept = weight_KI.T > 0
        row_J, column_J = order_KI.T[kept], column.T[kept]
        return pd.DataFrame(
            {
                "unit": self.unit,
                "group": self.neuron_I[column_J],
                "datum": datum_N[row_J],
                "weight": weight_KI.T[kept],
                "position": self.position_NI[row_J, column_J],
                "step": self.step_NI[row_J, column_J],
            }
        )

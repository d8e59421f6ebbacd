"""The forward passes since the last update of a custom loop, and what became of their gradients.

A user's loop does not announce where a batch begins. The forward calls that one backward pass
reaches form one ``ForwardPass``; several of them before an update are micro-batches. If the loop
sets gradients to 0 without an update, as after an overflow under a ``GradScaler``, their passes are
dropped.

Shapes: N datum.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from capture.custom_loop.packing.documents import Documents
from capture.custom_loop.passes.forward_passes import ForwardPass, StepPasses
from capture.custom_loop.passes.gradient_changes import GradientChanges
from capture.custom_loop.ranks.sharding import HasGradient, local_part


class OpenPasses:
    """The passes since the last update. The last one is open and may be empty."""

    def __init__(self, units: Mapping[str, HasGradient]) -> None:
        self.parameters: Sequence[HasGradient] = list(units.values())
        """What holds the gradients."""
        self.changes = GradientChanges(units)
        self.passes = [ForwardPass()]
        self.runs_from_loss = False
        """Whether a backward pass is running that began at one scalar."""
        self.loss_scale = 1.0
        """Number by which a ``GradScaler`` has divided the gradients since the last update."""
        self.has_old_gradients = False
        """Whether gradients of units were not 0 when the first δ since the last update arrived."""

    @property
    def last(self) -> ForwardPass:
        return self.passes[-1]

    def of(self, datum_N: np.ndarray | None, documents: Documents | None) -> ForwardPass:
        """Return the pass of a forward call; a new one if the last has had a backward pass.

        ``datum_N``: the datums of the next pass, if the loop has given them; ``documents``: those
        in the rows of the call.
        """
        if self.last.uses:
            if self.gradients_are_zero():
                self.discard_used()
            self.passes.append(ForwardPass())
        elif is_of_others(self.last, datum_N, documents):
            self.passes.append(ForwardPass())
        if datum_N is not None:
            self.last.datum_N = datum_N
        self.last.documents = documents or self.last.documents
        return self.last

    def begin_backward(self, forward: ForwardPass) -> None:
        """Note that the first δ of a pass arrives, and drop passes with discarded gradients."""
        if forward not in self.passes:
            return  # of an earlier step: its graph was kept
        forward.has_loss = self.runs_from_loss
        forward.backward = torch._C._current_graph_task_id()
        reached = [each for each in self.passes if each.uses]
        if any(each.backward == forward.backward for each in reached):
            return  # one backward pass through several forward passes: its gradients are not old
        # The order forward, zero_grad, backward is usual, so look at the gradients now.
        if self.gradients_are_zero():
            self.discard_used()
        elif not reached:
            self.has_old_gradients = True
        self.changes.is_open = True

    @contextmanager
    def from_one_loss(self) -> Iterator[None]:
        """Within the block, ``backward`` of a scalar runs."""
        before, self.runs_from_loss = self.runs_from_loss, True
        try:
            yield
        finally:
            self.runs_from_loss = before

    def note_unscaling(self, grads: Sequence[Tensor], found_inf: Tensor, inverse: Tensor) -> None:
        """Note that a ``GradScaler`` multiplies gradients by ``inverse``, if they are of units.

        For a fused optimizer it passes 1 here, to look for infinities only.
        """
        own = {values_of(p.grad).data_ptr() for p in self.parameters if p.grad is not None}
        if float(inverse) != 1 and any(local_part(grad).data_ptr() in own for grad in grads):
            self.loss_scale = 1 / float(inverse)
            self.changes.unscale(float(inverse))

    def discard_used(self) -> None:
        """Drop the passes whose gradients the loop has set to 0."""
        self.passes = [each for each in self.passes if not each.uses]
        self.has_old_gradients, self.loss_scale = False, 1.0
        self.changes.clear()

    def gradients_are_zero(self) -> bool:
        """Return whether all gradients are None or 0, as after ``zero_grad``."""
        grads = [parameter.grad for parameter in self.parameters]
        return not any(grad is not None and bool(values_of(grad).any()) for grad in grads)

    def used(self) -> list[ForwardPass]:
        """Return the passes that a backward pass has reached, in order."""
        return [each for each in self.passes if each.uses or each.unsplit]

    def take(self, used: list[ForwardPass]) -> StepPasses:
        """Return the passes of the step that ends, and start with an empty one."""
        taken = StepPasses(used, self.loss_scale, self.has_old_gradients, self.changes.found)
        self.passes = [ForwardPass()]
        self.has_old_gradients, self.loss_scale = False, 1.0
        self.changes.clear()
        return taken


def is_of_others(
    forward: ForwardPass, datum_N: np.ndarray | None, documents: Documents | None
) -> bool:
    """Return whether the next calls are of other datums than this pass, as far as is known."""
    if forward.documents and documents and forward.documents != documents:
        return True
    before = forward.datum_N
    return before is not None and datum_N is not None and not np.array_equal(before, datum_N)


def values_of(grad: Tensor) -> Tensor:
    """Return the numbers of a gradient on this rank; it may be sparse, or a shard."""
    return grad._values() if grad.is_sparse else local_part(grad)

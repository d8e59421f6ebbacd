"""Which datums a data loader puts into each batch, learned from its sampler.

A trainer takes the batches of its loader in order, so the lists of indices that the sampler gives
are those of the batches, however many workers load them. Nothing that the loader yields changes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from capture.errors import RunError

MISSED = "Pass datums=tokens, so that datums are found by their tokens"


class DrawnBatches:
    """A batch sampler that notes the indices of each batch that a loader draws."""

    def __init__(self, own: Any) -> None:
        self.own = own
        """The loader's own batch sampler."""
        self.waiting: deque[list[int]] = deque()
        """Batches that were drawn, and that the trainer has not taken yet."""
        self.num_skipped = 0
        """Batches at the start of the next pass that the trainer draws and leaves out."""

    def __iter__(self) -> Iterator[Sequence[int]]:
        self.waiting.clear()
        first, self.num_skipped = self.num_skipped, 0
        return self.draw(first)

    def draw(self, first: int) -> Iterator[Sequence[int]]:
        """Yield the sampler's batches; note them from number ``first`` on."""
        for number, indices in enumerate(self.own):
            if number >= first:
                self.waiting.append(list(indices))
            yield indices

    def __len__(self) -> int:
        return len(self.own)

    def __getattr__(self, name: str) -> Any:
        # Trainers reach through a batch sampler: to its sampler, its epoch, its batch size.
        if name == "own":
            raise AttributeError(name)
        return getattr(self.own, name)

    def take(self) -> list[int]:
        """Return the indices of the next batch that the trainer takes."""
        if not self.waiting:
            problem = "the trainer took a batch that its loader did not draw from the sampler"
            raise RunError("datums", problem, MISSED)
        return self.waiting.popleft()

    def require_all_taken(self) -> None:
        """Raise ``RunError`` if batches are left, so that ids were not those of their batches."""
        if self.waiting:
            problem = f"the trainer left out {len(self.waiting)} batches of an epoch unannounced"
            raise RunError("datums", problem, MISSED)


def watch(loader: Any) -> DrawnBatches | None:
    """Note what a loader draws from now on; None if its datums have no indices in this order.

    That is so for datasets that are streams, for loaders whose workers give batches in any order,
    and without batches.
    """
    base = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader that draws
    if not isinstance(base, DataLoader) or isinstance(base.dataset, IterableDataset):
        return None
    if base.batch_sampler is None or not getattr(base, "in_order", True):
        return None
    drawn = DrawnBatches(base.batch_sampler)
    vars(base)["batch_sampler"] = drawn  # a loader refuses to be changed by assignment
    return drawn


def stop_watching(loader: Any) -> None:
    """Give a loader its own batch sampler back."""
    base = getattr(loader, "base_dataloader", loader)
    if isinstance(base, DataLoader) and isinstance(base.batch_sampler, DrawnBatches):
        vars(base)["batch_sampler"] = base.batch_sampler.own

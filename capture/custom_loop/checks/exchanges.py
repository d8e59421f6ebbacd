"""Exchanges between processes that the loop makes of its model's outputs (``all_gather``, …).

A loss of gathered outputs mixes the datums of all processes, as the loss of CLIP does. No process
can run it again with other outputs of the others, so it is refused where a gradient comes from it.
Exchanges that no gradient depends on, such as a mean of losses for a log, are let through.

Every exchange of ``torch.distributed`` passes through a method of torch's ``ProcessGroup``, also
those of ``torch.distributed.nn``; gradients that wrappers average do not. Within
``watching_exchanges``, these methods tell of their calls first. Functional collectives are
operators of their own, which the tape sees.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch import distributed as dist

from capture.custom_loop.checks.model_calls import tensors_of
from capture.errors import SplitError

METHODS = {
    "allgather": "all_gather",
    "allgather_coalesced": "all_gather_coalesced",
    "allgather_into_tensor_coalesced": "all_gather_into_tensor",
    "_allgather_base": "all_gather_into_tensor",
    "all_gather_single": "all_gather_into_tensor",
    "all_gather_single_coalesced": "all_gather_into_tensor",
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce_coalesced",
    "reduce": "reduce",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "reduce_scatter_single": "reduce_scatter_tensor",
    "broadcast": "broadcast",
    "gather": "gather",
    "scatter": "scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all_single",
    "all_to_all_single": "all_to_all_single",
}
"""Methods of a process group, some only in older or newer versions of torch → the functions that
call them. The first argument of each is written."""
FUNCTIONAL = "_c10d_functional"
"""Beginning of the names of functional collectives."""
CONSTANTS = {
    *("new_tensor", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
}
"""Functions whose results have none of the numbers of the tensor that they are given."""
OnExchange = Callable[[str, Sequence[Tensor], Sequence[Tensor]], None]
"""Called with a function's name, the tensors that it writes, and all tensors that it is given."""


class Exchanged:
    """Which tensors hold numbers that processes have exchanged, and what was computed from them.

    All tensors that are told must be kept alive by the caller: they are known by their ids.
    """

    def __init__(self) -> None:
        self.num_exchanges = 0
        self.newest = ""
        """Name of the last exchange; "" if it sent nothing that depends on outputs."""
        self.written: dict[int, str] = {}
        """Id of a tensor that an exchange has written → its name."""
        self.mixed: dict[int, tuple[str, int]] = {}
        """Id of a tensor computed from those → the name, and when."""
        self.constant: set[int] = set()
        """Ids of tensors that were made from outputs, but have none of their numbers."""
        self.clock = 0
        self.end = 0
        """When the last gradient came back."""

    def note_exchange(self, name: str, written: Sequence[Tensor], sent: Collection[int]) -> None:
        """Note an exchange; ``sent``: ids of tensors that were computed from outputs."""
        self.num_exchanges += 1
        self.newest = name if set(sent) - self.constant else ""
        if self.newest:
            self.written |= {id(x): name for x in written}
            self.constant -= self.written.keys()

    def note_operation(
        self, func: str, given: Collection[int], made: Sequence[Tensor], exchange: str
    ) -> None:
        """Note an operation on tensors ``given``, by id, that made or changed ``made``.

        ``func``: its name. ``exchange``: name of an exchange that it consists of, or "".
        """
        ids = {id(x) for x in made}
        if func in CONSTANTS or self.constant.issuperset(given):
            self.constant |= ids
            return
        self.constant -= ids
        names = [self.written[key] for key in given if key in self.written]
        names += [self.mixed[key][0] for key in given if key in self.mixed]
        if exchange or names:
            self.mixed |= dict.fromkeys(ids, (exchange or names[0], self.clock))
        self.clock += 1

    def name_of(self, x: Tensor) -> str:
        """Return the exchange that a tensor depended on when gradients came back, or ""."""
        name, when = self.mixed.get(id(x), ("", self.end))
        return name if when < self.end else ""


@contextmanager
def watching_exchanges(on_exchange: OnExchange) -> Iterator[None]:
    """Within the block, ``on_exchange`` is told of every exchange, before it is made."""
    if not (dist.is_available() and dist.is_initialized()):
        yield  # one process, which exchanges nothing; torch stays as it is
        return
    # As the class holds them: what getattr returns would not be bound to a group again.
    before = {name: x for name, x in vars(dist.ProcessGroup).items() if name in METHODS}
    for name in before:
        method = getattr(dist.ProcessGroup, name)
        setattr(dist.ProcessGroup, name, watched(method, METHODS[name], on_exchange))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(dist.ProcessGroup, name, method)


def watched(method: Callable[..., Any], name: str, on_exchange: OnExchange) -> Callable[..., Any]:
    """Return a method that tells of its call, and makes it as before."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        on_exchange(name, tensors_of(args[:1]), tensors_of((args, kwargs)))
        return method(self, *args, **kwargs)

    return call


def functional_name(func: Callable[..., Any]) -> str:
    """Return the name of a functional collective, "" for any other function."""
    text = str(func) if hasattr(func, "_qualified_op_name") else ""
    return text.split(".")[1] if text.startswith(FUNCTIONAL) else ""


def exchange_error(name: str, step: int) -> SplitError:
    problem = (
        f"datums of all processes interact in the loss, which uses {name} of the model's outputs: "
        "a datum's gradient depends on the outputs of other processes"
    )
    remedy = (
        "Nothing of the open segment is stored. Compute the loss of each process from its own "
        "datums; a contrastive loss cannot be recorded"
    )
    return SplitError(f"step {step}", problem, remedy)

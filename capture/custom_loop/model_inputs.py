"""What the inputs of a model's forward pass tell: the number of datums, and the window's length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from capture.errors import UnitError
from capture.gradients.torch_functions import NotSplittable
from capture.gradients.window_axis import Axis, only_axis_of_length


def count_rows(inputs: Sequence[Tensor]) -> int:
    """Return the number of datums in the inputs of a forward pass, if the loop did not give it.

    A mask [T, T] or positions [1, T] may stand beside the batch; tokens [N, T] tell which it is.
    Raises ``UnitError`` if the inputs disagree and none is of tokens.
    """
    lengths = {x.shape[0] for x in inputs if x.shape[0] > 1} or {1}
    tokens = {x.shape[0] for x in inputs if x.dim() == 2 and not x.is_floating_point()}
    if len(lengths) > 1 and len(tokens) != 1:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        problem = f"got inputs {shapes}, whose first axes differ"
        raise UnitError("model", problem, "Call recorder.datums(ids) before each forward pass")
    return next(iter(lengths)) if len(lengths) == 1 else next(iter(tokens))


def require_rows(inputs: Sequence[Tensor], num_datums: int) -> None:
    """Raise ``UnitError`` unless an input has a row for each datum that the loop gave."""
    if any(x.shape[0] == num_datums for x in inputs):
        return
    problem = f"got an input {tuple(inputs[0].shape)} for {num_datums} datums"
    remedy = "Give one id for each row of the batch, which is the first axis"
    if rows := [x for x in inputs if is_tokens(x) and len(x) == 1]:
        length = rows[0].shape[1]
        problem = f"got one row of {length} tokens for {num_datums} datums, as if they were packed"
        remedy = (
            "Pass the model position_ids that start again at each datum, or say which positions "
            "are whose: recorder.datums(ids, documents=numbers)"
        )
    raise UnitError("model", problem, remedy)


def loop_window_axis(middle: Sequence[int], inputs: Sequence[Tensor], window: int | None) -> Axis:
    """Return the axis of the window among the axes between datum and features of a call.

    It is the only one as long as a token input of the model or, if none is, as the datums.
    ``window``: tokens of a datum, None if datums are not described. Raises ``NotSplittable`` for
    datums with tokens if no axis or several are that long. Without tokens to look up, positions are
    only numbers, so None is returned instead: all axes count as one.
    """
    if window == 1:  # datums have names alone, and position 0 alone
        return None
    given = {x.shape[1] for x in inputs if is_tokens(x)}
    if window is not None:
        known = given if given.intersection(middle) else given | {window}
        return only_axis_of_length(middle, known)
    try:
        return only_axis_of_length(middle, given)
    except NotSplittable:
        return None


def is_tokens(x: Tensor) -> bool:
    """Return whether an input has the form of tokens, [N, T]."""
    return x.dim() == 2 and not x.is_floating_point() and x.dtype != torch.bool

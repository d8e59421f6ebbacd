"""Find the documents in the rows of a batch: by positions that start again, or as the loop says.

Shapes: R row of the batch, W width of a row, N datum (a document).
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from capture.custom_loop.packing.documents import Documents
from capture.errors import ConfigError

POSITIONS = "position_ids"
MASK = "attention_mask"
BOUNDARIES = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seqlens_q")
"""Names under which models take the first positions of all documents, and the end of the last."""


def named_inputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors among a model's arguments by the names that its ``forward`` gives them."""
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        names = []
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return {name: x for name, x in given.items() if isinstance(x, Tensor)}


def find_documents(inputs: Mapping[str, Tensor], num_datums: int | None) -> Documents | None:
    """Return the documents that the inputs of a model tell; None if rows are datums.

    ``num_datums``: of the batch, if the loop has given ids. Then the rows are datums if they are as
    many; otherwise documents of one token at the end of a row, which are padding as a rule, are
    left out unless they are counted.
    """
    for found in candidates(inputs):
        if found is None:
            continue
        trimmed = without_padding(found)
        if trimmed is None:
            continue
        if num_datums is None:
            # Each row holds one document: rows and documents are the same datums.
            return trimmed if len(set(trimmed.row_N.tolist())) < len(trimmed) else None
        if num_datums == found.num_rows:
            return None
        for each in (trimmed, found):
            if len(each) == num_datums:
                return each
    return None


def candidates(inputs: Mapping[str, Tensor]) -> Iterator[Documents | None]:
    positions, mask = inputs.get(POSITIONS), inputs.get(MASK)
    tokens = [x for x in inputs.values() if x.dim() == 2]
    if positions is not None and positions.dim() == 2 and not positions.is_floating_point():
        num_rows = max((len(x) for x in tokens if x.shape[1] == positions.shape[1]), default=1)
        kept = mask if mask is not None and mask.shape == positions.shape else None
        yield by_positions(positions.expand(num_rows, -1), kept)
    for name in BOUNDARIES:
        bounds = inputs.get(name)
        if bounds is not None and bounds.dim() == 1 and not bounds.is_floating_point():
            first = next((x for n, x in inputs.items() if n != name and x.dim()), None)
            yield None if first is None else by_boundaries(bounds, first)


def by_positions(position_RW: Tensor, mask_RW: Tensor | None) -> Documents | None:
    """Return the documents of rows whose positions do not go up by one where one begins."""
    place_RW = position_RW.detach().cpu().numpy()
    document_RW = np.cumsum(np.diff(place_RW, axis=1, prepend=place_RW[:, :1]) != 1, axis=1)
    if mask_RW is not None:
        document_RW = np.where(mask_RW.detach().cpu().numpy() != 0, document_RW, -1)
    return by_numbers(document_RW)


def by_boundaries(bounds: Tensor, first: Tensor) -> Documents | None:
    """Return the documents between boundaries in the flattened rows of an input [R, W] or [M]."""
    at = bounds.tolist()
    num_rows, width = (1, len(first)) if first.dim() == 1 else first.shape[:2]
    if len(at) < 2 or at[0] != 0 or at != sorted(at) or at[-1] > num_rows * width:
        return None
    pairs = [(a, b) for a, b in pairwise(at) if b > a]
    if any(a // width != (b - 1) // width for a, b in pairs):
        return None
    row_N = np.array([a // width for a, _ in pairs])
    start_N = np.array([a for a, _ in pairs]) - row_N * width
    return Documents(num_rows, width, row_N, start_N, start_N + [b - a for a, b in pairs])


def by_numbers(document_RW: np.ndarray) -> Documents | None:
    """Return the documents of rows that hold the number of each position's document.

    Equal numbers side by side are one document; negative ones are padding. None without documents.
    """
    num_rows, width = document_RW.shape
    before_RW = np.full((num_rows, 1), document_RW.min() - 1 if document_RW.size else 0)
    begins_RW = np.diff(document_RW, axis=1, prepend=before_RW) != 0
    row_M, start_M = np.nonzero(begins_RW)
    ends = np.append(np.where(row_M[1:] == row_M[:-1], start_M[1:], width), width)
    kept_M = document_RW[row_M, start_M] >= 0
    if not kept_M.any():
        return None
    stop_M = ends[: len(row_M)]
    return Documents(num_rows, width, row_M[kept_M], start_M[kept_M], stop_M[kept_M])


def without_padding(found: Documents) -> Documents | None:
    """Return the documents without those of one token at the end of a row; None if none is left.

    Padding has the same position throughout, so that each of its tokens looks like a document.
    """
    is_long_N = found.stop_N - found.start_N > 1
    kept_N = np.zeros(len(found), bool)
    for row in set(found.row_N.tolist()):
        own = np.flatnonzero(found.row_N == row)
        if len(long := own[is_long_N[own]]):
            kept_N[own[0] : long[-1] + 1] = True
    if not kept_N.any():
        return None
    places = (x[kept_N] for x in (found.row_N, found.start_N, found.stop_N))
    return Documents(found.num_rows, found.width, *places)


def given_documents(documents: Any, num_datums: int) -> Documents:
    """Return the documents that the loop gives as numbers, [R, W] or [W].

    Raises ``ConfigError`` if they are not integers of this form, or not as many as ids.
    """
    number_RW = documents.detach().cpu().numpy() if isinstance(documents, Tensor) else documents
    number_RW = np.atleast_2d(np.asarray(number_RW))
    if number_RW.ndim != 2 or number_RW.dtype.kind not in "iu":
        problem = f"got documents {number_RW.dtype} {number_RW.shape}"
        remedy = "Give the number of the document at each position, [rows, tokens]; -1 is padding"
        raise ConfigError("recorder.datums", problem, remedy)
    found = by_numbers(number_RW.astype(np.int64))
    if (count := 0 if found is None else len(found)) != num_datums:
        problem = f"got {num_datums} datums for {count} documents"
        remedy = "Give one id for each document, in the order of the rows"
        raise ConfigError("recorder.datums", problem, remedy)
    assert found is not None
    return found

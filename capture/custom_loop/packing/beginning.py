"""Tell the tape whose rows a forward pass of the loop holds: of datums, or of packed documents."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from capture.custom_loop.identity import DatumIdentity
from capture.custom_loop.loop_tape import LoopTape
from capture.custom_loop.packing.finding import find_documents


def begin_pass(
    tape: LoopTape, identity: DatumIdentity, inputs: Sequence[Tensor], named: Mapping[str, Tensor]
) -> None:
    """Note that a forward pass begins, and its datums, looked up by their tokens if need be.

    ``inputs``: tensors among the arguments of the model; ``named``: those by the name of their
    parameter. Raises what ``DatumIdentity.of_batch`` and ``LoopTape.begin_forward`` raise.
    """
    given_N = tape.known_datum_N
    documents = tape.given_documents or find_documents(
        named, None if given_N is None else len(given_N)
    )
    if given_N is None and documents is not None and identity.holds_rows(inputs):
        documents = None
    known_N = identity.of_batch(inputs, tape.next_datum_N, documents)
    if known_N is not None and tape.next_datum_N is None:
        tape.set_datums(known_N, tape.given_documents)
    tape.begin_forward(inputs, documents)

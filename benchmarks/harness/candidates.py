"""The methods that ``benchmarks.capture`` compares with recording, by their names in its table."""

import importlib.util
from dataclasses import dataclass

from benchmarks.harness import methods, peers
from benchmarks.harness.methods import Method
from benchmarks.harness.workbench import Workbench

PLAIN = "plain step"


@dataclass(frozen=True)
class Candidate:
    """A method, and how many of its steps are timed per round."""

    name: str
    method: Method
    steps: int
    note: str
    """Explanation printed below the table."""


def make_candidates(bench: Workbench) -> list[Candidate]:
    """Return the methods that do not record; the plain step comes first."""
    found = [
        Candidate(
            PLAIN,
            methods.plain,
            20,
            "Our model and dropout, nothing captured; the unit of all ratios.",
        ),
        Candidate(
            "ours: factors multiplied out",
            methods.from_factors,
            20,
            "Every datum's dense gradients of the body, in memory, as the methods below return.",
        ),
        Candidate(
            "one backward per datum",
            methods.datum_by_datum,
            3,
            "20 forward and backward passes of a batch of one. The reference of all errors.",
        ),
        Candidate(
            "torch.func: vmap(grad), then a plain pass",
            methods.vmap_grad,
            3,
            "vmap(grad) for the body; a plain pass for the other gradients of the update.",
        ),
        Candidate(
            "torch.func: vmap over copies of the weights",
            methods.vmap_copies,
            5,
            "vmap over one view of the body's weights per datum; one ordinary backward pass.",
        ),
    ]
    return found + (opacus_candidates(bench) if has_opacus() else [])


def opacus_candidates(bench: Workbench) -> list[Candidate]:
    """Return Opacus on the body alone and on the whole model; needs Opacus."""
    body = peers.opacus(bench.model, body_only=True)
    whole = peers.opacus(bench.model, body_only=False)
    equal = "The model with nn.Linear in attention (Opacus refuses in_proj_weight)"
    return [
        Candidate("Opacus: hooks on the body", body, 10, f"{equal}; dense gradients of the body."),
        Candidate(
            "Opacus: hooks on everything",
            whole,
            2,
            f"{equal}; Opacus' default: embedding and unembedding too, 46 MB a datum.",
        ),
    ]


def has_opacus() -> bool:
    return importlib.util.find_spec("opacus") is not None

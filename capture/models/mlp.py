"""Which weights of a model's layers form an MLP, by their names and shapes.

Most families name the module ``mlp``. The others (OPT, BERT) are recognized by structure: two
weights of one layer outside its attention, of which one reads as many features as the other writes,
and the reverse.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

MLP = "*.mlp.*"
ATTENTION = ("attn", "attention")
"""Parts of the names of attention modules."""


def mlp_weights(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the weights of MLPs among these parameters, in order; ``shapes`` by name."""
    matrices = {name: tuple(shape) for name, shape in shapes.items() if len(shape) == 2}
    free = {name: layer_of(name) for name in matrices if not is_attention(name)}
    pairs = {(layer, matrices[name]) for name, layer in free.items() if layer is not None}
    return [
        name
        for name, (rows, columns) in matrices.items()
        if fnmatchcase(name, MLP)
        or (rows != columns and (free.get(name), (columns, rows)) in pairs)
    ]


def layer_of(name: str) -> str | None:
    """Return the name of a parameter's layer, up to its number: ``layers.3``; None if it has none.

    A number that is the whole name of a module beside others, as in a plain ``nn.Sequential``, is
    no layer that holds several weights, so it pairs with nothing.
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def is_attention(name: str) -> bool:
    return any(word in name for word in ATTENTION)

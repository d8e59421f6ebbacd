"""What columns that several pages share mean. Columns of one page are defined there."""

NEURON = "The neuron: the MLP weight that it is a column of, and the number of the column, from 0"
UNIT = "The weight tensor (unit), by its name in the model"
TOKEN = "The token, as in the vocabulary of the run"
EVIDENCE = (
    "Total weight of the evidence that attribution used for the neuron. Outliers: their number or "
    "size. Tallies: relative to the mean neuron of the unit (no unit)"
)
CHANGE = (
    "Mean change of the token's log-probability when the neuron is ablated (ablated − full model), "
    "over the positions where it is the true next token, in nats"
)
EFFECT = (
    "Root mean square change of log p(true next token) when the neuron is ablated, over all scored "
    "positions, in nats; below 0.001 the neuron is nearly dead"
)
POSITIONS = "Number of positions in the text that the mean is taken over"


def interval_of(what: str) -> str:
    """Return the definition of a column with a bootstrap interval."""
    return f"95 % interval of {what}, in its unit (bootstrap)"

"""Descriptions of datums: names, numbers, tokens as arrays or lists."""

import re

import numpy as np
import pytest
import torch

from capture.custom_loop.datums import datum_tables
from capture.errors import ConfigError

KEY = "corpus/datums.parquet"
TOKENS = [[1, 2, 3], [3, 0, 1]]


@pytest.mark.parametrize(
    "same",
    [
        TOKENS,
        [tuple(row) for row in TOKENS],
        [torch.tensor(row) for row in TOKENS],
        torch.tensor(TOKENS),
        np.array(TOKENS, np.uint16),
    ],
    ids=["lists", "tuples", "tensors", "tensor", "array"],
)
def test_tokens_may_be_lists_or_arrays(same):
    wanted, found = datum_tables(np.array(TOKENS), None), datum_tables(same, None)
    assert found.keys() == wanted.keys()
    assert all(found[key].equals(wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    "names", [["4", "7"], [4, 7], list(torch.tensor([4, 7]).numpy())], ids=["text", "int", "numpy"]
)
def test_names_may_be_texts_or_numbers(names):
    assert datum_tables(names, None)[KEY]["text"].to_pylist() == ["4", "7"]


WRONG = {
    "too short": ([[1, 2, 3], [4]], "datums: have 1 to 3 tokens, must have 2 or more. Tokens must"),
    "mixed": (["ab", [1, 2]], "datums: have 1 to 2 tokens, must have 2 or more"),
    "unequal texts": ([["a", "b"], ["c", "d", "e"]], "Tokens must be integers"),
    "unequal and deeper": ([[[1, 2], [3, 4]], [[1, 2]] * 3], "Tokens must be integers"),
    "unequal, not in the vocabulary": ([[1, 2, -3], [4, 5]], "datums: has tokens -3 to 5"),
    "deeper": ([[[1, 2], [3]], [[1], [2]]], "datums: are neither names nor lists of tokens"),
    "texts": ([["a", "b"], ["c", "d"]], "Tokens must be integers"),
    "empty": ([], "datums: is empty, must name at least one datum"),
    "one token": ([[1], [2]], "Tokens must be integers [datums, window + 1]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_descriptions_are_refused_in_one_line(name):
    datums, message = WRONG[name]
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        datum_tables(datums, None)
    assert "\n" not in str(raised.value)

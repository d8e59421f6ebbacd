"""Own tokens and topics of neurons, and labels of clusters."""

import numpy as np
from scipy.sparse import csr_array

from analysis.neurons.topics import (
    cluster_tokens,
    effective_sample_size,
    find_topics,
    own_tokens,
    shuffle_tokens,
)


def planted_counts() -> tuple[csr_array, np.ndarray]:
    """Target counts of 40 neurons and 30 tokens, and the theme of each neuron.

    Ten neurons share a theme; the first two have two. Theme k has the tokens 5k to 5k + 4; the
    tokens 20 to 29 are frequent in all neurons.
    """
    theme_G = np.repeat(np.arange(4), 10)
    rate_GV = np.full((40, 30), 0.5)
    rate_GV[:, 20:] = 10
    for neuron, theme in enumerate(theme_G):
        rate_GV[neuron, 5 * theme : 5 * theme + 5] = 60
    rate_GV[:2, 10:15] = 60
    return csr_array(rate_GV), theme_G


def one_datum_per_row(token_GV: csr_array) -> csr_array:
    """Datum counts under which all rows are independent."""
    return csr_array(np.ones((token_GV.shape[0], 1000)))


def test_own_tokens_topics_and_labels_equal_the_planted_ones() -> None:
    token_GV, theme_G = planted_counts()
    own = own_tokens(token_GV, one_datum_per_row(token_GV), np.full(40, "u"))
    sets = own.groupby("group")["token_id"].agg(set)
    for neuron, theme in enumerate(theme_G):
        planted = set(range(5 * theme, 5 * theme + 5)) | (
            set(range(10, 15)) if neuron < 2 else set()
        )
        assert sets[neuron] == planted
    assert own["rank"].eq(own.groupby("group").cumcount()).all()
    topics = find_topics(own, token_GV)
    assert [len(topic) for topic in topics] == [2, 2] + [1] * 38
    assert sorted(map(sorted, topics[0])) == [list(range(5)), list(range(10, 15))]
    labels = cluster_tokens(own, theme_G, num_tokens=30)
    assert [sorted(label) for label in labels] == [list(range(5 * k, 5 * k + 5)) for k in range(4)]


def test_shuffling_keeps_the_tokens_and_their_number_per_neuron() -> None:
    token_GV, _ = planted_counts()
    own = own_tokens(token_GV, one_datum_per_row(token_GV), np.full(40, "u"))
    shuffled = shuffle_tokens(own, seed=1)
    assert sorted(shuffled["token_id"]) == sorted(own["token_id"])
    assert shuffled["group"].equals(own["group"])
    assert not shuffled["token_id"].equals(own["token_id"])


def test_rows_of_one_datum_are_one_observation() -> None:
    datum_GN = csr_array(np.array([[9.0, 0, 0], [2, 2, 2], [0, 0, 0]]))
    assert effective_sample_size(datum_GN).tolist() == [1, 3, 0]
    token_GV, _ = planted_counts()
    one_datum = csr_array(np.eye(40))
    own = own_tokens(token_GV, one_datum, np.full(40, "u"))
    assert len(own) == 0
    assert find_topics(own, token_GV) == [[]] * 40
    assert cluster_tokens(own, np.zeros(40, int), 30) == [[]]
    assert cluster_tokens(own, np.full(40, -1), 30) == []

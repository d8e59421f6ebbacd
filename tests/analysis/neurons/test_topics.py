"""What taught a cluster of neurons: tokens and topics."""

import numpy as np
from scipy.sparse import csr_array

from analysis.neurons.topics import cluster_tokens, dealt_anew, find_topics, independent, own_tokens


def taught() -> tuple[csr_array, np.ndarray]:
    """Target counts of 40 neurons, 30 tokens: ten neurons a theme; the first two have two themes.

    Theme k owns tokens 5k to 5k + 4; tokens 20 to 29 are everywhere.
    """
    theme_G = np.repeat(np.arange(4), 10)
    rate_GV = np.full((40, 30), 0.5)
    rate_GV[:, 20:] = 10
    for neuron, theme in enumerate(theme_G):
        rate_GV[neuron, 5 * theme : 5 * theme + 5] = 60
    rate_GV[:2, 10:15] = 60
    return csr_array(rate_GV), theme_G


def each_row_from_its_own_datum(token_GV: csr_array) -> csr_array:
    """Datum counts in which all rows are independent."""
    return csr_array(np.ones((token_GV.shape[0], 1000)))


def test_own_tokens_topics_and_labels_are_the_planted_ones() -> None:
    token_GV, theme_G = taught()
    own = own_tokens(token_GV, each_row_from_its_own_datum(token_GV), np.full(40, "u"))
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


def test_tokens_dealt_anew_are_the_same_tokens() -> None:
    token_GV, _ = taught()
    own = own_tokens(token_GV, each_row_from_its_own_datum(token_GV), np.full(40, "u"))
    dealt = dealt_anew(own, seed=1)
    assert sorted(dealt["token_id"]) == sorted(own["token_id"])
    assert dealt["group"].equals(own["group"])
    assert not dealt["token_id"].equals(own["token_id"])


def test_rows_of_one_datum_are_one_observation() -> None:
    datum_GN = csr_array(np.array([[9.0, 0, 0], [2, 2, 2], [0, 0, 0]]))
    assert independent(datum_GN).tolist() == [1, 3, 0]
    token_GV, _ = taught()
    one_datum = csr_array(np.eye(40))
    own = own_tokens(token_GV, one_datum, np.full(40, "u"))
    assert len(own) == 0
    assert find_topics(own, token_GV) == [[]] * 40
    assert cluster_tokens(own, np.zeros(40, int), 30) == [[]]
    assert cluster_tokens(own, np.full(40, -1), 30) == []

"""Which heads look along syntactic dependencies?

Source: Clark et al. 2019, "What does BERT look at?", section 4.2; Chen et al. 2024, "Sudden drops
in the loss" (syntactic attention structure). A model that sees only what came before can look along
a dependency from its later word to its earlier one, whichever of the two is the head.

Shapes: H head, T position, W word, E dependency.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.measures.standard_error import standard_error
from analysis.trajectory.metrics.row import Row, head_name
from analysis.trajectory.observed.dependencies import Edge, Sentence
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text

FEWEST_EDGES = 20
"""Dependencies of a relation that is measured on its own."""


def syntactic_heads(model: Observed, text: Text) -> Iterator[Row]:
    """Share of dependencies along which a head looks, of all (``L0H1``) and by relation.

    A head looks along a dependency if, of all words before the later one, the earlier one gets most
    of its attention: summed over the tokens looked at, averaged over those that look. Null: the
    share that a look at one fixed distance finds at best, chosen for the relation. Standard errors
    are over sentences, whose dependencies depend on each other.
    """
    hits: dict[str, list[np.ndarray]] = defaultdict(list)
    distances: dict[str, list[int]] = defaultdict(list)
    sentences: dict[str, list[int]] = defaultdict(list)
    for number, sentence in enumerate(text.sentences):
        layers = words_attended(model, sentence)
        for edge in sentence.edges:
            found = np.array([along(layer_HWW, edge) for layer_HWW in layers])
            for relation in ("", edge.relation):
                hits[relation].append(found)
                distances[relation].append(abs(edge.head - edge.dependent))
                sentences[relation].append(number)
    nulls = {relation: fixed_distance(own) for relation, own in distances.items()}
    for relation, own in sorted(hits.items()):
        if relation and len(own) < FEWEST_EDGES:
            continue
        hit_LHE = np.moveaxis(np.array(own, np.float64), 0, -1)
        for layer, hit_HE in enumerate(hit_LHE):
            errors = standard_error(hit_HE, np.array(sentences[relation])).tolist()
            for head, (hit_E, error) in enumerate(zip(hit_HE, errors, strict=True)):
                name = f"{head_name(layer, head)} {relation}".strip()
                value, null = float(hit_E.mean()), nulls[relation]
                yield Row("syntactic_heads", name, value, len(hit_E), error, null)


def words_attended(model: Observed, sentence: Sentence) -> list[np.ndarray]:
    """Return the attention between words in each layer, [H, W, W]."""
    token_T = [token for word in sentence.words for token in word]
    owner_T = np.repeat(np.arange(len(sentence.words)), [len(word) for word in sentence.words])
    member_WT = np.equal.outer(np.arange(len(sentence.words)), owner_T).astype(np.float64)
    mean_WT = member_WT / member_WT.sum(1, keepdims=True)
    layers: list[Tensor] = model.attention(torch.tensor([token_T]))
    return [mean_WT @ layer[0].double().cpu().numpy() @ member_WT.T for layer in layers]


def along(weight_HWW: np.ndarray, edge: Edge) -> np.ndarray:
    """Return whether each head looks along a dependency, [H]."""
    later, earlier = max(edge.head, edge.dependent), min(edge.head, edge.dependent)
    return weight_HWW[:, later, :later].argmax(1) == earlier


def fixed_distance(distances: Sequence[int]) -> float:
    """Return the share of the most frequent distance."""
    return Counter(distances).most_common(1)[0][1] / len(distances)

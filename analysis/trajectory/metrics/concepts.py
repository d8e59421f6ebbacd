"""What the model knows of a concept that the user describes in examples.

Shapes: N example, C token of a completion, V vocabulary, D width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from analysis.trajectory.metrics.row import Row, mean_row, state_name
from analysis.trajectory.observed.concept import LEAST_OF_A_LABEL, Completion
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text

TOP = 5


def completions(model: Observed, text: Text) -> Iterator[Row]:
    """How well the model completes the prompts of the concept file.

    ``completion_loss``: nats per token of the completion. ``completion_accuracy``: share of prompts
    whose whole completion is ranked first, token by token. ``completion_top5``: share whose first
    token is among the first five. Null: the same completions after the next prompt of the file.
    """
    examples = list(text.concept.completions)
    others = [*examples[1:], *examples[:1]]
    exchanged = [Completion(o.before, e.tokens) for e, o in zip(examples, others, strict=True)]
    own = scores(model, examples)
    null = scores(model, exchanged) if len(examples) > 1 else np.full((1, 3), np.nan)
    for number, name in enumerate(("loss", "accuracy", "top5")):
        baseline = float(null[:, number].mean())
        yield mean_row(f"completion_{name}", "", own[:, number], baseline)


def scores(model: Observed, examples: Sequence[Completion]) -> np.ndarray:
    """Return loss, accuracy and top-5 of each completion, float64 [N, 3]."""
    found = []
    for example in examples:
        token_1T = torch.tensor([[*example.before, *example.tokens[:-1]]])
        log_p_CV = model.logits(token_1T)[0, -len(example.tokens) :].double().log_softmax(1).cpu()
        wanted_C = torch.tensor(example.tokens)
        loss = -float(log_p_CV.gather(1, wanted_C[:, None]).mean())
        exact = bool((log_p_CV.argmax(1) == wanted_C).all())
        best = log_p_CV[0].topk(min(TOP, log_p_CV.shape[1])).indices
        found.append((loss, exact, bool((best == wanted_C[0]).any())))
    return np.array(found, np.float64)


def probe(model: Observed, text: Text) -> Iterator[Row]:
    """Accuracy of a linear probe for the label, read after each layer at a text's last token.

    Logistic regression on standardised states, predicted in five folds. Null, the control task of
    Hewitt & Liang 2019 for labels of texts: the same probe for labels dealt at random.
    """
    label_N, dealt_N = labels_and_dealt(text)
    for number, state_ND in enumerate(last_states(model, text)):
        hits_N = probed(state_ND, label_N, text.seed)
        null = float(probed(state_ND, dealt_N, text.seed).mean())
        yield mean_row("probe", state_name(number), hits_N, null)


def probe_hypervolume(model: Observed, text: Text) -> Iterator[Row]:
    """Area below the best accuracy of a probe that is no more complex than x, x from 0 to 1.

    The Pareto hypervolume of Pimentel et al. 2020, "Pareto probing". A probe of rank k reads the
    first k principal components of the states (k = 0 guesses the most frequent label); its
    complexity is log(1 + k) / log(1 + width). A concept that few directions hold has a larger
    area than one that takes many, at the same best accuracy. Null: labels dealt at random.
    """
    label_N, dealt_N = labels_and_dealt(text)
    for number, state_ND in enumerate(last_states(model, text)):
        area = hypervolume(state_ND, label_N, text.seed)
        null = hypervolume(state_ND, dealt_N, text.seed)
        yield Row("probe_hypervolume", state_name(number), area, len(label_N), null=null)


def labels_and_dealt(text: Text) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the texts, and the same dealt at random, [N] each."""
    label_N = np.array(text.concept.labels)
    return label_N, np.random.default_rng(text.seed).permutation(label_N)


def hypervolume(state_ND: np.ndarray, label_N: np.ndarray, seed: int) -> float:
    """Return the area below the Pareto frontier of complexity and accuracy, 0 to 1."""
    width = state_ND.shape[1]
    most = min(width, len(state_ND) - -(-len(state_ND) // LEAST_OF_A_LABEL))
    ranks = [0, *(2**power for power in range(most.bit_length()) if 2**power < most), most]
    accuracy_K = [probed(state_ND, label_N, seed, rank).mean() for rank in ranks]
    best_K = np.maximum.accumulate(accuracy_K)
    ends = np.append(np.log1p(ranks) / np.log1p(width), 1.0)
    return float(best_K @ np.diff(ends))


def last_states(model: Observed, text: Text) -> list[np.ndarray]:
    """Return each layer's state at the last token of each labelled text, [N, D]."""
    states: list[list[np.ndarray]] = [[] for _ in range(len(model.blocks) + 1)]
    for tokens in text.concept.texts:
        for found, state_1TD in zip(states, model.states(torch.tensor([tokens])), strict=True):
            found.append(state_1TD[0, -1].double().cpu().numpy())
    return [np.array(found) for found in states]


def probed(
    state_ND: np.ndarray, label_N: np.ndarray, seed: int, rank: int | None = None
) -> np.ndarray:
    """Return whether each label is predicted from the other folds, float64 [N].

    ``rank``: number of principal components that the probe reads; None for the states themselves.
    """
    # These take a second to load.
    from sklearn.decomposition import PCA
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = DummyClassifier()
    if rank != 0:
        first = [] if rank is None else [PCA(rank)]
        classifier = make_pipeline(*first, StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(LEAST_OF_A_LABEL, shuffle=True, random_state=seed)
    return (cross_val_predict(classifier, state_ND, label_N, cv=folds) == label_N).astype(float)

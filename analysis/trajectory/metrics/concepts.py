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
    rng = np.random.default_rng(text.seed)
    label_N = np.array(text.concept.labels)
    dealt_N = rng.permutation(label_N)
    states: list[list[np.ndarray]] = [[] for _ in range(len(model.blocks) + 1)]
    for tokens in text.concept.texts:
        for found, state_1TD in zip(states, model.states(torch.tensor([tokens])), strict=True):
            found.append(state_1TD[0, -1].double().cpu().numpy())
    for number, found in enumerate(states):
        hits_N = probed(np.array(found), label_N, text.seed)
        null = float(probed(np.array(found), dealt_N, text.seed).mean())
        yield mean_row("probe", state_name(number), hits_N, null)


def probed(state_ND: np.ndarray, label_N: np.ndarray, seed: int) -> np.ndarray:
    """Return whether each label is predicted from the other folds, float64 [N]."""
    # These take a second to load.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(LEAST_OF_A_LABEL, shuffle=True, random_state=seed)
    return (cross_val_predict(classifier, state_ND, label_N, cv=folds) == label_N).astype(float)

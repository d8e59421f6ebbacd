"""What is kept of a training: numbers of its spectrum, of treated steps, samples and nulls.

Shapes: S step, K singular value.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from analysis.spectra.concentration import CUTOFF, numbers_of
from analysis.spectra.gram import Treatment, gram_of, singular_values, treated
from analysis.spectra.nulls import NULLS, null_gram
from analysis.spectra.samples import sampled_spectra
from benchmarks.mnist_spectrum.conditions import Condition, fading
from benchmarks.mnist_spectrum.training import train

TREATMENTS = (
    Treatment(),
    Treatment(subtract_mean=True),
    Treatment(skip=200),
    Treatment(unit_length=True),
)
FADING_TREATMENTS = (Treatment(), Treatment(unit_length=True))
SAMPLED_STEPS, SAMPLES = 400, 10
NULL_DRAWS = 3


def measure(condition: Condition, folder: Path) -> dict:
    """Return a line of the results: plain JSON."""
    trained = train(condition, folder)
    line = {"condition": asdict(condition), "accuracy": trained.accuracy, "loss": trained.loss}
    gram_SS = gram_of(trained.gradient_SP)
    if condition in fading(condition.seed):
        line["gradients"] = {one.name: numbers(treated(gram_SS, one)) for one in FADING_TREATMENTS}
        return line
    line["gradients"] = spectrum(gram_SS, trained.gradient_SP.shape[1], condition.seed)
    if not condition.shuffled_labels:
        line["updates"] = numbers(gram_of(trained.update_SP))
        line["weights"] = numbers(gram_of(np.cumsum(trained.update_SP, 0, np.float64)))
    return line


def numbers(gram_SS: np.ndarray) -> dict:
    return vars(numbers_of(singular_values(gram_SS)))


def spectrum(gram_SS: np.ndarray, entries: int, seed: int) -> dict:
    """Return numbers of each treatment and null, of the sampled form, and of other cutoffs.

    ``gap``: how many values stand before the largest relative gap among the first 31.
    """
    rng = np.random.default_rng(seed)
    value_K = singular_values(gram_SS)
    samples = sampled_spectra(gram_SS, SAMPLED_STEPS, SAMPLES, rng, CUTOFF)
    nulls = {
        null: [null_gram(null, gram_SS, entries, rng) for _ in range(NULL_DRAWS)] for null in NULLS
    }
    return {
        **{treatment.name: numbers(treated(gram_SS, treatment)) for treatment in TREATMENTS},
        **{null: [numbers(drawn_SS) for drawn_SS in drawn] for null, drawn in nulls.items()},
        "samples": samples.to_dict("list"),
        "gap": int((value_K[:30] / value_K[1:31]).argmax()) + 1,
        "cutoffs": {
            str(share): int((value_K > share * value_K[0]).sum()) for share in (0.05, 0.15)
        },
    }

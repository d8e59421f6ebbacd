"""Allowed values and defaults that help and tab completion show, as plain literals.

The modules that define them import torch, pandas or pyarrow, which takes seconds; ``--help`` must
not. A test compares each literal with the definition that it repeats.
"""

ACTIVATION_QUANTITIES = (
    *("inputs", "outputs", "head-entries", "head-norm", "attention-entropy", "attention-largest"),
    *("attention-self", "attention-previous", "attention-distance"),
)

ABLATION_LEVELS = ("neuron", "row", "head")
ABLATION_SPLITS = ("train", "validation", "test")
ABLATION_VALUES = ("zero", "mean", "resample")

ATTRIBUTION_BACKGROUNDS = ("unit", "train")
ATTRIBUTION_EVIDENCE = (
    *("window", "target", "input"),
    *("update-norm", "ablation-estimate", "geometric-mean"),
    *("input-update-norm", "input-ablation-estimate"),
)
ATTRIBUTION_FORMER_EVIDENCE = {
    "mass": "update-norm",
    "use": "ablation-estimate",
    "mass-use": "geometric-mean",
    "input-mass": "input-update-norm",
    "input-use": "input-ablation-estimate",
}
ATTRIBUTION_LEVELS = ("parameter", "neuron", "row", "unit", "head")
ATTRIBUTION_OUTLIERS = ("absolute", "unit", "neuron", "parameter")
ATTRIBUTION_SELECT = ("rate", "odds", "study", "product", "mahalanobis", "kl")
ATTRIBUTION_WEIGHTS = ("count", "shift", "effect")

CLUSTERING_METHODS = ("hdbscan", "agglomerative")
CLUSTERING_WEIGHTS = ("rows", "shift")

GARBAGE_AGE_MINUTES = 10
JUDGE_DEFAULTS = ("unrolled", "path", "gradient", "cosine", "bm25", "random")
JUDGE_METHODS = (
    *("unrolled", "path", "gradient", "cosine", "ekfac", "adamw-influence"),
    *("outliers", "tallies", "bm25", "common-tokens", "random"),
)
RETRAINED_EVIDENCE = ("held-out", "order")
RECORD_KINDS = ("outliers", "tallies", "factors")
REPLAY_TOLERANCE = 1e-4
REPORT_NEURONS = 1200
SPECTRUM_OF = ("gradients", "updates", "weights")
UNEXPECTED_EVIDENCE = ("residual", "excess", "loss", "self-influence", *RETRAINED_EVIDENCE)

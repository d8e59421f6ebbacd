"""All metrics: what each measures, and what it needs of the model and the text.

A metric is a function (model, text) → rows. Its docstring defines its values and their null.
"""

from analysis.trajectory.metrics.concepts import completions, probe, probe_hypervolume
from analysis.trajectory.metrics.fourier import modular_waves
from analysis.trajectory.metrics.heads.ablations import head_ablation, neuron_ablation
from analysis.trajectory.metrics.heads.composition import composition
from analysis.trajectory.metrics.heads.paths import path_patching
from analysis.trajectory.metrics.heads.patterns import attention_patterns
from analysis.trajectory.metrics.heads.syntax import syntactic_heads
from analysis.trajectory.metrics.interactions import token_interactions
from analysis.trajectory.metrics.lens import logit_lens
from analysis.trajectory.metrics.metric import Described, Metric
from analysis.trajectory.metrics.ngrams import ngram_divergence
from analysis.trajectory.metrics.noise import gradient_noise
from analysis.trajectory.metrics.prediction import copying, in_context, prediction
from analysis.trajectory.metrics.similarity import representation_similarity
from analysis.trajectory.metrics.weights import weight_changes, weight_sizes

UNIFORM = "uniform attention to all tokens so far"
UNIFORM_TOKENS = "a uniform prediction"
PERMUTED = "the same with positions permuted"
OTHER = "the completion after another prompt"
DEALT = "a probe for labels dealt at random"
RANDOM, WEAK, SHUFFLED = "random logits", "the 5 weakest instead", "numbers in random order"
MATRICES = "random matrices of the same shapes"
FIXED = "a look at one fixed distance, the best for the relation"
UNIGRAM = "a unigram model of the training text"
CATALOGUE = (
    Metric(
        prediction,
        (
            Described("loss", "nats", "cross-entropy per token of held-out text", UNIGRAM),
            Described("accuracy", "share", "held-out targets that the model ranks first", UNIGRAM),
            Described("top5", "share", "held-out targets among the model's first five", UNIGRAM),
        ),
        frozenset({"held-out text"}),
    ),
    Metric(
        in_context,
        (Described("in_context", "nats", "loss late in a window minus loss early in it", "0"),),
        frozenset({"held-out text", "logits at all positions", "windows of 20 tokens"}),
    ),
    Metric(
        copying,
        (Described("copying", "nats", "loss on a repeated random block minus its first", "0"),),
        frozenset({"logits at all positions", "repeated tokens"}),
    ),
    Metric(
        attention_patterns,
        (
            Described("previous_token", "share", "attention to the token before", UNIFORM),
            Described("duplicate_token", "share", "attention to the same token earlier", UNIFORM),
            Described(
                "induction", "share", "attention to what followed the same token earlier", UNIFORM
            ),
        ),
        frozenset({"attention", "repeated tokens"}),
    ),
    Metric(
        ngram_divergence,
        (
            Described(
                "ngram_kl",
                "nats",
                "KL divergence from n-grams of the training text",
                UNIFORM_TOKENS,
            ),
        ),
        frozenset({"held-out text", "training text", "logits at all positions"}),
    ),
    Metric(
        logit_lens,
        (
            Described("logit_lens", "nats", "loss of the prediction read after a layer", UNIGRAM),
            Described("logit_lens_kl", "nats", "KL divergence of it from the final prediction"),
        ),
        frozenset({"held-out text", "logit lens"}),
    ),
    Metric(
        head_ablation,
        (Described("head_ablation", "nats", "loss increase with a head set to zero", "0"),),
        frozenset({"held-out text", "head outputs"}),
    ),
    Metric(
        neuron_ablation,
        (Described("neuron_ablation", "nats", "loss increase with a neuron set to zero", "0"),),
        frozenset({"held-out text", "neurons"}),
        asked=True,
    ),
    Metric(
        path_patching,
        (Described("path_patching", "nats", "loss increase by one direct path, in copying", "0"),),
        frozenset(
            {"repeated tokens", "head paths", "64 pairs of components at most (--paths)"},
        ),
        asked=True,
    ),
    Metric(
        composition,
        tuple(
            Described(f"{letter}_composition", "", f"what a later head's {what} reads", MATRICES)
            for letter, what in (("q", "query"), ("k", "key"), ("v", "value"))
        ),
        frozenset({"head matrices"}),
    ),
    Metric(
        syntactic_heads,
        (Described("syntactic_heads", "share", "dependencies along which a head looks", FIXED),),
        frozenset({"attention", "sentences with dependencies (--dependencies)"}),
    ),
    Metric(
        token_interactions,
        (Described("token_interactions", "nats", "|interaction| of two tokens of a context", "0"),),
        frozenset({"held-out text", "logits at all positions"}),
        asked=True,
    ),
    Metric(
        representation_similarity,
        (
            Described("cka_before", "", "CKA of a layer with itself before", PERMUTED),
            Described("cka_layers", "", "CKA of two layers", PERMUTED),
        ),
        frozenset({"held-out text", "layers"}),
    ),
    Metric(
        weight_sizes,
        (
            Described("weight_norm", "", "Euclidean norm of a unit"),
            Described("weight_mean", "", "mean of a unit's entries"),
            Described("weight_variance", "", "variance of a unit's entries"),
        ),
    ),
    Metric(
        weight_changes,
        (
            Described("update_norm", "", "norm of the change since the checkpoint before"),
            Described("update_mean", "", "mean of its entries"),
            Described("update_variance", "", "variance of its entries"),
            Described("update_cosine", "", "cosine of this change with the one before", "0"),
        ),
    ),
    Metric(
        gradient_noise,
        (
            Described("gradient_norm", "", "mean norm of a training datum's gradient"),
            Described("noise_scale", "datums", "batch size at which noise equals signal"),
            Described("gradient_size", "", "norm of the datums' mean gradient"),
            Described("gradient_mean", "", "mean of its entries"),
            Described("gradient_variance", "", "variance of its entries"),
        ),
        frozenset({"training text"}),
    ),
    Metric(
        completions,
        (
            Described("completion_loss", "nats", "per token of the concept's completions", OTHER),
            Described("completion_accuracy", "share", "whole completions ranked first", OTHER),
            Described("completion_top5", "share", "first tokens among the first five", OTHER),
        ),
        frozenset({"prompts with completions (--concept)", "logits at all positions"}),
    ),
    Metric(
        probe,
        (Described("probe", "share", "accuracy of a linear probe for the label", DEALT),),
        frozenset({"texts with labels (--concept)", "layers"}),
    ),
    Metric(
        probe_hypervolume,
        (Described("probe_hypervolume", "", "accuracy of probes over their complexity", DEALT),),
        frozenset({"texts with labels (--concept)", "layers"}),
    ),
    Metric(
        modular_waves,
        (
            Described("sum_waves", "share", "logits' variance at a frequency of a + b", RANDOM),
            Described("restricted_loss", "nats", "loss of the 5 strongest frequencies alone", WEAK),
            Described("excluded_loss", "nats", "training loss without them", WEAK),
            Described("embedding_gini", "", "inequality of the embedding's frequencies", SHUFFLED),
        ),
        frozenset({"modular addition", "training text"}),
    ),
)
"""All metrics, in the order of tables and pages."""

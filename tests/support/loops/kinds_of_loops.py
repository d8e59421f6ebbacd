"""All kinds of custom training loops that are tested, in the order of the table in the docs."""

import exact_attention
import exact_experts
import exact_families
import exact_gradients
import exact_losses
import exact_models
import exact_modules
import exact_optimizers
import exact_passes
import refused_models
import refused_optimizers
from exact_loops import EXACT as EXACT
from refused_loops import REFUSED as REFUSED

MODULES = (
    exact_attention,
    exact_optimizers,
    exact_gradients,
    exact_losses,
    exact_passes,
    exact_models,
    exact_families,
    exact_modules,
    exact_experts,
    refused_models,
    refused_optimizers,
)
"""Each adds its kinds when it is imported."""

SLOW = {
    *("RMSprop", "Adagrad, fused", "Adadelta", "ASGD", "Adamax", "RAdam"),
    *("Mixtral with the experts one by one", "Mixtral with batched experts"),
    *("Qwen2-MoE (a shared expert)", "Qwen3-MoE", "OLMoE"),
    *("AdamW with amsgrad", "SGD with dampening, maximize", "Adagrad", "NAdam"),
    'fallback="vmap": DeBERTa-v2 with relative positions',
    'fallback="vmap": a unit used by a custom autograd.Function',
    "Mixtral with the balancing loss of its router (output_router_logits=True)",
}
"""Kinds that differ little from others, so that `make slow` runs them."""

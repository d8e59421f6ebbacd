"""All kinds of custom training loops that are tested, in the order of the table in the docs."""

import exact_attention
import exact_families
import exact_gradients
import exact_losses
import exact_models
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
    refused_models,
    refused_optimizers,
)
"""Each adds its kinds when it is imported."""

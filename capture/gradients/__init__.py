"""Per-sample gradients, kept as factors, from one ordinary backward pass.

``Tape`` watches a forward pass and yields, after the backward pass, each captured parameter's
``Factors``: the layer's inputs a and output gradients δ, from which every datum's gradient follows.
Imports torch and ``capture.errors`` alone.
"""

from capture.gradients.factors import Factor as Factor
from capture.gradients.factors import Factors as Factors
from capture.gradients.factors import choose_units as choose_units
from capture.gradients.layout import Layout as Layout
from capture.gradients.tape import Tape as Tape

"""Rules by which the optimizers of custom loops turn a gradient into an update, one per kind.

A rule states the update of one parameter as a formula that is linear in the gradient, given the
optimizer's state: multiplier ⊙ gradient + carry. It reads the optimizer's settings and state, never
the weights after the step, so the audit can fail.
"""

from capture.optim.rules.finding import find_rule as find_rule
from capture.optim.rules.finding import refused_option as refused_option
from capture.optim.rules.unit_update import UnitParts as UnitParts
from capture.optim.rules.unit_update import UnitUpdate as UnitUpdate

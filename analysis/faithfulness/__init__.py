"""Evaluation of attribution methods against the measured effects of ablation.

The entry point is ``analysis.faithfulness.faithfulness.faithfulness``. May import every other
package of ``analysis`` except ``analysis.report`` and ``analysis.neurons``.
"""

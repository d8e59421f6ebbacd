"""Record a training loop that you wrote yourself, with any model in plain PyTorch.

``record.record`` is the entry point; ``recording.Recording`` is the object that it yields. Imports
from ``capture`` everything up to ``capture.training``. Exports nothing: ``ontogeny.record`` is the
public name.
"""

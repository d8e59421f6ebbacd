"""Gradients of parameters that have no factors, by running their module again for each datum.

A module whose function cannot be split (an LSTM, a convolution with groups, fused experts) still
treats the rows of a batch one by one. So datum i's gradient is that of the module alone, with the
rows of datum i as inputs, and the loss gradient that came back to datum i's outputs.
"""

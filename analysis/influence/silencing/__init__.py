"""Take out of the last weights what some datums moved, without training again.

``contributions`` adds up what the datums' gradients still contribute to the last weights;
``silencing`` sets the entries of matrices to 0 that they moved most, and compares queries before
and after, with random datums as the null.
"""

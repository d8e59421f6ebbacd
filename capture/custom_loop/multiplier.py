"""The factor by which a loop has multiplied gradients, where these are rounded to bfloat16.

Least squares (``update.gradient_multiplier``) is off by up to a rounding, because every gradient
has one of its own: by 0.03 % for a model of a hundred parameters. The audit allows each entry its
own rounding and nothing more, so an entry that was rounded nearly as far as possible would miss its
bound by the error of the factor. Hence the factor is chosen such that all entries keep their
bounds, if there is one: an entry with ĝ = c · (S + e), |e| ≤ r, says that 1 / c lies between
(|S| − r) / |ĝ| and (|S| + r) / |ĝ|.

Shapes: P all captured parameters.
"""

from torch import Tensor


def within_rounding(found: float, given_P: Tensor, summed_P: Tensor, rounding_P: Tensor) -> float:
    """Return the multiplier nearest to ``found`` for which rounding explains all differences.

    It is 1.0 if that explains them, and ``found`` if no multiplier does: the audit says so.
    ``given_P``: gradients that the optimizer is given; ``summed_P``: sum of per-sample gradients;
    ``rounding_P``: bounds on the rounding of each before the multiplication.
    """
    sign = -1.0 if found < 0 else 1.0
    with_sign_P = given_P.double() * summed_P.double().sign() * sign
    bound_P = with_sign_P > 0  # entries of another sign are left to the audit
    if not bool(bound_P.any()):
        return found
    size_P, given_P = summed_P.double().abs()[bound_P], with_sign_P[bound_P]
    rounding_P = rounding_P.double()[bound_P]
    low = float(((size_P - rounding_P) / given_P).max())
    high = float(((size_P + rounding_P) / given_P).min())
    if low > high or high <= 0:
        return found
    if sign > 0 and low <= 1 <= high:
        return 1.0
    return sign / min(max(sign / found, low), high) if found else found

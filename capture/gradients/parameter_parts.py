"""Parts of a parameter, as attention splits its packed weights into those of queries and keys.

Shapes: R row of a parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from capture.gradients.torch_functions import PARTING, NotSplittable, ParameterRole

Absent = tuple[int, int]
"""Rows of the parameter before and after those of a part."""


def parts_of(
    func: Callable[..., Any], parameter: Tensor, out: Any, whole: Absent
) -> list[tuple[Tensor, Absent]]:
    """Return the parts that a call has made of a parameter; none if it did something else.

    ``whole``: the rows that the parameter itself lacks, if it is a part already.
    """
    if func not in PARTING or sum(len(part) for part in out) != len(parameter):
        return []
    first, found = 0, []
    for part in out:
        end = first + len(part)
        found.append((part, (whole[0] + first, whole[1] + len(parameter) - end)))
        first = end
    return found


def roles_of(
    roles: Sequence[tuple[Tensor | None, ParameterRole]],
    names: Mapping[int, str],
    parts: Mapping[int, Absent],
) -> dict[str, ParameterRole]:
    """Return the roles of the units among the parameters of a call, by name.

    Raises ``NotSplittable`` for a part whose gradient cannot be placed in that of its parameter.
    """
    found = {}
    for parameter, role in roles:
        if id(parameter) not in names:
            continue
        if id(parameter) in parts:
            if role.kind not in ("outer", "sum") or role.transposed:
                raise NotSplittable("a function of a part of it")
            role = replace(role, absent=parts[id(parameter)])
        found[names[id(parameter)]] = role
    return found

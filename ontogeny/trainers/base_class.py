"""Give a callback the base class that its trainer expects, when it is made.

The trainer's library is large, and may not be installed. It is loaded for the first callback, not
for ``import ontogeny``.
"""

from functools import cache
from typing import Any, Self


class JoinsOnCreation:
    """Objects of a child class are also objects of the classes that ``bases`` returns."""

    @staticmethod
    def bases() -> tuple[type, ...]:
        """Return the classes that a trainer expects, from its library."""
        raise NotImplementedError

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return super().__new__(joined(cls, cls.bases()))


@cache
def joined(own: type, bases: tuple[type, ...]) -> Any:
    """Return a class with the name of ``own`` that inherits from it and from the bases."""
    missing = tuple(base for base in bases if not issubclass(own, base))
    members = {"__module__": own.__module__, "__doc__": own.__doc__}
    return type(own.__name__, (own, *missing), members) if missing else own

"""Define the dataclasses of which a merge makes tens of thousands of instances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen: bool, repr: bool = True) -> Any:
        """Return a decorator that makes a class a dataclass whose fields nobody assigns to.

        The type checker sees a frozen dataclass. Where the program runs, instances are compared and hashed as those of one,
        but nothing stands in the way of an assignment: `__init__` of a frozen dataclass takes four times as long.
        """
        assert frozen
        return dataclass(unsafe_hash=True, repr=repr)


__all__ = ["record"]

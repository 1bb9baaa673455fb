"""Define the dataclasses of which a merge makes tens of thousands of instances, and sends them to workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass, fields
    from operator import attrgetter

    def record(*, frozen: bool, repr: bool = True) -> Any:
        """Return a decorator that makes a class a dataclass of two or more fields, to which nobody assigns.

        The type checker sees a frozen dataclass. Where the program runs, instances are compared and hashed as those of one,
        but nothing stands in the way of an assignment: `__init__` of a frozen dataclass takes four times as long. They are
        pickled as a tuple of their fields, without their names and without cached properties.
        """
        assert frozen

        def made(kind: type) -> type:
            kind = dataclass(unsafe_hash=True, repr=repr)(kind)
            values = attrgetter(*[field.name for field in fields(kind)])
            kind.__reduce__ = lambda self: (type(self), values(self))
            return kind

        return made


__all__ = ["record"]

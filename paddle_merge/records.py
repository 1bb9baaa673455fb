"""Define the dataclasses that hold what was decided, read or found, and that stay as they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass, fields
    from operator import attrgetter
    from reprlib import recursive_repr

    def record(*, frozen: bool, repr: bool = True, eq: bool = True) -> Any:
        """Return a decorator that makes a class a dataclass to whose instances nobody assigns.

        The type checker sees a frozen dataclass. Where the program runs, instances are shown, compared and hashed as those
        of one, but nothing stands in the way of an assignment: `__init__` of a frozen dataclass takes four times as long,
        and a plan has tens of thousands of instances. To make the class takes a quarter of the time, because only `__init__`
        is compiled for it, and a merge begins with 150 of them. Instances are pickled as a tuple of their fields, without
        their names and without cached properties.
        """
        assert frozen

        def made(kind: type) -> type:
            kind = dataclass(repr=False, eq=False)(kind)
            its = fields(kind)
            values = _values([field.name for field in its])
            kind.__reduce__ = lambda self: (type(self), values(self))
            if eq:
                _compare(kind, _values([field.name for field in its if field.compare]))
            if repr and "__repr__" not in vars(kind):
                _show(kind, [field.name for field in its if field.repr])
            return kind

        return made

    def _values(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
        """Return what gives a tuple of the attributes of these names."""
        if len(names) > 1:
            return attrgetter(*names)
        return lambda self: tuple(getattr(self, name) for name in names)

    def _compare(kind: type, values: Callable[[Any], tuple[Any, ...]]) -> None:
        """Make instances of a class equal to others of it with the same values."""

        def equal(self: Any, other: Any) -> bool:
            return values(self) == values(other) if type(other) is type(self) else NotImplemented

        kind.__eq__, kind.__hash__ = equal, lambda self: hash(values(self))

    def _show(kind: type, names: Sequence[str]) -> None:
        """Make instances of a class shown as a call that makes them."""

        def shown(self: Any) -> str:
            return f"{type(self).__qualname__}({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

        kind.__repr__ = recursive_repr()(shown)


__all__ = ["record"]

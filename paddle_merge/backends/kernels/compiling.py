"""Make compiled loops of Python functions. Numba compiles each once on a machine.

Importing Numba takes longer than to merge a small model, and more memory than its weights. So a loop whose machine code is
kept (kept_code.py) runs without Numba (native.py); it is imported only to compile what isn't there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import attrgetter
from types import CellType, FunctionType
from typing import Any

import numpy as np

from . import kept_code, native
from .kept_code import Code

_LOCK = threading.RLock()  # held while a loop is made ready for arguments of other types
_of_array = attrgetter("dtype", "ndim", "flags.num")  # that some flags don't matter only makes more keys


class Loop:
    """A compiled loop. It is called as the function is that it is made of, with these arguments only: NumPy arrays, numbers
    of Python and NumPy, None, and tuples of them. It is compiled when it is first called with arguments of such types.

    function: may call other loops, which are names of its module, or of the function in which it was made.
    name: tells loops apart whose machine code is kept.
    """

    def __init__(self, function: FunctionType, name: str):
        self.function, self.name = function, name
        self._ready: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._dispatchers: dict[bool, Any] = {}

    def __call__(self, *args: Any) -> Any:
        key = _key(args)
        run = self._ready.get(key)
        if run is None:
            run = self._ready[key] = self._prepared(args)
        return run(*args)

    def dispatcher(self, inner: bool = False) -> Any:
        """Return the loop as Numba has it, which it imports. inner: for loops that call it; Python can't.

        Raises ConfigError if Numba may not compile.
        """
        if inner not in self._dispatchers:
            from numba import config, njit

            # As Python code, loops would take hours, and whole numbers have no limits there.
            if config.DISABLE_JIT:  # type: ignore[attr-defined]
                from ...errors import ConfigError

                raise ConfigError("NUMBA_DISABLE_JIT is set, so that Numba compiles nothing; unset it")
            code, names, cells = self.function.__code__, dict(self.function.__globals__), self.function.__closure__ or ()
            names |= {name: _without_loop(names[name]) for name in code.co_names if name in names}
            made = FunctionType(
                code,
                names,
                self.function.__name__,
                self.function.__defaults__,
                tuple(CellType(_without_loop(cell.cell_contents)) for cell in cells),
            )
            made.__module__ = self.function.__module__
            made.__qualname__ = self.name  # with which Numba names the machine code, and so tells it apart
            less: Any = {"no_cpython_wrapper": inner, "no_cfunc_wrapper": True}  # the latter is for calls from C
            self._dispatchers[inner] = njit(nogil=True, error_model="numpy", **less)(made)
        return self._dispatchers[inner]

    def _prepared(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        """Return what runs the loop with arguments of these types."""
        types = ", ".join(map(_type_name, args))
        with _LOCK:
            code = kept_code.find(self.name, types)
            if code is None:
                with kept_code.compiling(self.name):
                    code = kept_code.find(self.name, types)  # maybe another process has compiled it meanwhile
                    if code is None:
                        code = self._compiled(args)
                        kept_code.keep(self.name, types, code)
            return native.callable_of(code) or self.dispatcher()

    def _compiled(self, args: tuple[Any, ...]) -> Code:
        """Return the machine code for arguments of these types."""
        dispatcher = self.dispatcher()
        from numba import typeof

        types = tuple(map(typeof, args))
        dispatcher.compile(types)
        return native.code_of(dispatcher.overloads[types])


def jit(function: Callable[..., Any], name: str = "") -> Any:
    """Return the loop of a function. name: of a function that another one has made: what tells it from others; default: its
    own name."""
    assert isinstance(function, FunctionType)
    return Loop(function, f"{function.__module__.rpartition('.')[2]}.{name or function.__name__}")


def _without_loop(value: Any) -> Any:
    return value.dispatcher(inner=True) if isinstance(value, Loop) else value


def _key(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what is equal for arguments of the same types."""
    return tuple(
        [
            _of_array(arg) if isinstance(arg, np.ndarray) else _key(arg) if isinstance(arg, tuple) else type(arg)
            for arg in args
        ]
    )


def _type_name(arg: Any) -> str:
    """Return what Numba's type of an argument depends on, in words."""
    if isinstance(arg, tuple):
        return f"({', '.join(map(_type_name, arg))})"
    if isinstance(arg, int) and not -(1 << 63) <= arg < 1 << 63:  # Numba has another type for them
        raise OverflowError(f"{arg} doesn't fit into 64 bits")
    if arg is None or type(arg) in (bool, int, float):
        return type(arg).__name__
    if not isinstance(arg, np.ndarray | np.generic) or arg.dtype.kind not in "biuf":  # words don't tell others apart
        raise TypeError(f"loops take arrays, numbers, None, and tuples of them, not {arg!r}")
    if isinstance(arg, np.generic):
        return str(arg.dtype.str)
    flags = arg.flags
    layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
    return f"{arg.dtype.str}[{arg.ndim}]{layout}{'' if flags.writeable else 'r'}{'' if flags.aligned else 'u'}"

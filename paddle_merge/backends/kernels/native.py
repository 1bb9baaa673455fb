"""Run machine code that Numba has made, without importing Numba.

Numba makes, beside a loop's own function, one that Python can call, which takes arrays apart. It is linked with LLVM, to
Python's functions and to those of three extension modules of Numba's, which don't need the rest of Numba. What is done here
is what Numba does with code of its own cache (numba/core/codegen.py, base.py, runtime/nrt.py).
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import importlib.machinery
import importlib.util
import logging
import sys
import sysconfig
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .kept_code import Code

log = logging.getLogger("paddle_merge")
_MODULES = ("_helperlib", "_dynfunc", "core.runtime._nrt_python")


def code_of(compiled: Any) -> Code:
    """Return the machine code of a loop that Numba has compiled (a CompileResult). Raises TypeError if the loop returns what
    only Numba can make a Python object of: an array."""
    library, described = compiled.library, compiled.fndesc
    if compiled.environment.consts:
        raise TypeError(f"the loop {described.qualname} needs Python objects: have it write to an array that it is given")
    module = library._final_module
    external = [one.name for one in (*module.functions, *module.global_variables) if one.is_declaration]
    _, _, (machine_code, _) = library.serialize_using_object_code()
    return Code(
        described.llvm_cpython_wrapper_name,
        described.env_name,
        [name for name in external if not name.startswith("llvm.")],
        machine_code,
    )


def callable_of(code: Code) -> Callable[..., Any] | None:
    """Return the function of machine code; None: this process or this version of Numba lacks what it needs."""
    try:
        return _linker().callable_of(code)
    except (ImportError, AttributeError, TypeError) as error:
        log.debug("loops are run by Numba, which takes longer to start: %s: %s", type(error).__name__, error)
        return None


@functools.cache
def _linker() -> _Linker:
    return _Linker()


class _Linker:
    """Links machine code into this process."""

    def __init__(self) -> None:
        from llvmlite import binding

        self._binding = binding
        helpers, dynamic, runtime = map(_extension, _MODULES)
        self._dynamic = dynamic
        for module in (helpers, dynamic):
            for name, address in module.c_helpers.items():
                binding.add_symbol(f"numba_{name}", address)
        for name, address in runtime.c_helpers.items():
            binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)
        binding.add_symbol("_Py_NoneStruct", id(None))
        for value in vars(builtins).values():
            if isinstance(value, type) and issubclass(value, BaseException):
                binding.add_symbol(f"PyExc_{value.__name__}", id(value))

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        self._target = binding.Target.from_triple(binding.get_process_triple())
        self._module = ModuleType("compiled")

    def callable_of(self, code: Code) -> Callable[..., Any]:
        """Return the function of machine code. Raises ImportError if a symbol is missing."""
        engine = self._engine()  # without one, LLVM doesn't know this process's symbols
        if any(name.startswith("__svml_") for name in code.external):
            with contextlib.suppress(RuntimeError):  # it isn't there any more
                self._binding.load_library_permanently("libsvml.so")  # Intel's functions, which Numba loads if it finds them
        if lacking := list(filter(self._lacks, code.external)):  # LLVM would end the process
            raise ImportError(f"there is no {lacking[0]}")
        engine.add_object_file(self._binding.ObjectFileRef.from_data(code.object))
        engine.finalize_object()
        environment = self._dynamic.Environment({})
        place = engine.get_global_value_address(code.environment)
        ctypes.c_void_p.from_address(place).value = id(environment)
        address = engine.get_function_address(code.wrapper)
        kept = (engine,)  # which frees the code when it goes
        made: Callable[..., Any] = self._dynamic.make_function(self._module, code.wrapper, "", address, environment, kept)
        return made

    def _engine(self) -> Any:
        """Return what links one object file. A second one, made by another process, may have other functions of the same
        names, for Numba numbers functions in the order in which a process compiles them, and LLVM would take the first's.
        """
        x86 = self._target.name.startswith("x86")
        machine = self._target.create_target_machine(reloc="static" if x86 else "default", codemodel="jitdefault", jit=True)
        empty = self._binding.parse_assembly("")
        engine = self._binding.create_mcjit_compiler(empty, machine)
        engine.remove_module(empty)  # compiling it would take longer than to link the code
        return engine

    def _lacks(self, symbol: str) -> bool:
        return not self._binding.address_of_symbol(symbol)


def _extension(name: str) -> ModuleType:
    """Return an extension module of Numba's. Raises ImportError if there is none."""
    full = f"numba.{name}"
    if full in sys.modules:
        return sys.modules[full]
    found = importlib.util.find_spec("numba")
    if found is None or not found.submodule_search_locations:
        raise ImportError("Numba isn't installed")
    path = f"{found.submodule_search_locations[0]}/{name.replace('.', '/')}{sysconfig.get_config_var('EXT_SUFFIX')}"
    loader = importlib.machinery.ExtensionFileLoader(full, path)
    spec = importlib.util.spec_from_file_location(full, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module

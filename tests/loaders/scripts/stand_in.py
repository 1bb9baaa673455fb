"""Let modules be imported that are not on PyPI, or not for CPUs.

PaddleFormers imports paddlefleet, paddlefleet_ops and triton for GPUs. Nothing of them is used here, so empty classes stand
in for what it imports of them, and for its own modules that do nothing without paddlefleet.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types

STOOD_IN = ("paddlefleet", "paddlefleet_ops", "triton")
PROVIDERS = ("paddleformers.transformers.gpt_provider", "paddleformers.transformers.model_provider")


class StandIn(types.ModuleType):
    """A module that has a class of every name."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        members = {"__init__": lambda *_, **__: None, "__class_getitem__": lambda item: object, "transform_rules": {}}
        setattr(self, name, type(name, (), members))
        return getattr(self, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        stood_in = name.partition(".")[0] in STOOD_IN or name in PROVIDERS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if stood_in else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Let the modules be found."""
    sys.meta_path.insert(0, Finder())

"""Merge model checkpoints of any size; the output is the same, byte for byte, whatever the number of workers.

The public functions and classes are those in __all__:

from paddle_merge import MergeConfig, merge
merge(MergeConfig(merge_method="ties", model_path_list=["a", "b"], base_model_path="base", output_path="out"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .commands.analyze.cli import AnalyzeConfig, analyze
    from .commands.diff.cli import DiffConfig, diff
    from .commands.extract_lora.config import ExtractConfig
    from .commands.extract_lora.run import extract_lora
    from .commands.inspect.cli import InspectConfig, inspect
    from .commands.merge_lora.config import MergeLoraConfig
    from .commands.merge_lora.run import merge_lora
    from .errors import CheckpointError, ConfigError, MergeError, OutputError, WorkError
    from .recipe.config import MergeConfig
    from .run.merge import merge
    from .run.state_dicts import merge_state_dicts

__all__ = [
    "AnalyzeConfig",
    "CheckpointError",
    "ConfigError",
    "DiffConfig",
    "ExtractConfig",
    "InspectConfig",
    "MergeConfig",
    "MergeError",
    "MergeLoraConfig",
    "OutputError",
    "WorkError",
    "analyze",
    "diff",
    "extract_lora",
    "inspect",
    "merge",
    "merge_lora",
    "merge_state_dicts",
]

_HOMES = {
    "AnalyzeConfig": "commands.analyze.cli",
    "DiffConfig": "commands.diff.cli",
    "ExtractConfig": "commands.extract_lora.config",
    "InspectConfig": "commands.inspect.cli",
    "MergeConfig": "recipe.config",
    "MergeLoraConfig": "commands.merge_lora.config",
    "analyze": "commands.analyze.cli",
    "diff": "commands.diff.cli",
    "extract_lora": "commands.extract_lora.run",
    "inspect": "commands.inspect.cli",
    "merge": "run.merge",
    "merge_lora": "commands.merge_lora.run",
    "merge_state_dicts": "run.state_dicts",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import paddle_merge` stays fast. Raises AttributeError."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    """Return all names, also those that are imported when they are first used, for completion in a shell."""
    return sorted({*globals(), *__all__})

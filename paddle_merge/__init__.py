"""Merge model checkpoints: any size, any number of workers, the same bytes.

from paddle_merge import MergeConfig, merge
merge(MergeConfig(merge_method="ties", model_path_list=["a", "b"], base_model_path="base", output_path="out"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.cli import AnalyzeConfig, analyze
    from .config import MergeConfig
    from .errors import CheckpointError, ConfigError, MergeError, OutputError, WorkError
    from .extract.config import ExtractConfig
    from .extract.run import extract_lora
    from .memory import merge_state_dicts
    from .report.diff_cli import DiffConfig, diff
    from .report.inspect_cli import InspectConfig, inspect
    from .run import merge

__version__ = "0.1.0"
__all__ = [
    "AnalyzeConfig",
    "CheckpointError",
    "ConfigError",
    "DiffConfig",
    "ExtractConfig",
    "InspectConfig",
    "MergeConfig",
    "MergeError",
    "OutputError",
    "WorkError",
    "analyze",
    "diff",
    "extract_lora",
    "inspect",
    "merge",
    "merge_state_dicts",
]

_HOMES = {
    "AnalyzeConfig": "analysis.cli",
    "DiffConfig": "report.diff_cli",
    "ExtractConfig": "extract.config",
    "InspectConfig": "report.inspect_cli",
    "MergeConfig": "config",
    "analyze": "analysis.cli",
    "diff": "report.diff_cli",
    "extract_lora": "extract.run",
    "inspect": "report.inspect_cli",
    "merge": "run",
    "merge_state_dicts": "memory",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that importing the package costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)

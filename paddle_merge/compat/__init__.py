"""PaddleNLP's mergekit on this engine: in a script of its users, only the import changes.

from paddle_merge.compat import MergeConfig, MergeModel
MergeModel(MergeConfig(merge_method="slerp", model_path_list=["a", "b"], output_path="out")).merge_model()

Names, positional order, defaults, checks and results are PaddleNLP's (PaddleFormers' further fields too). Where PaddleNLP's
code does something else than it says, this does what it says; the differences are in README.md.
"""

from .config import MergeConfig
from .model import MergeModel
from .tensors import MergeMethod, SparsifyMethod

__all__ = ["MergeConfig", "MergeMethod", "MergeModel", "SparsifyMethod"]

"""Offer PaddleNLP's mergekit classes on this engine: a script that uses them only changes its import.

from paddle_merge.compat import MergeConfig, MergeModel
MergeModel(MergeConfig(merge_method="slerp", model_path_list=["a", "b"], output_path="out")).merge_model()

Names, positional order, defaults, checks and results are PaddleNLP's; PaddleFormers' further fields exist too. Where
PaddleNLP's code doesn't do what its documentation says, this package does what the documentation says (see README.md).
"""

from .config import MergeConfig
from .model import MergeModel
from .tensors import MergeMethod, SparsifyMethod

__all__ = ["MergeConfig", "MergeMethod", "MergeModel", "SparsifyMethod"]

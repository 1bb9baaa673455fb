"""Merge during a training: callbacks for the Trainers of PaddleNLP and PaddleFormers; each works in both.

from paddle_merge.training import AverageCallback
trainer.add_callback(AverageCallback(last=5, decay="1-sqrt"))

Neither library is imported here, and Paddle only when a training runs.
"""

from .average import AverageCallback
from .ema import EmaCallback
from .merge import MergeCallback
from .window import WindowCallback

__all__ = ["AverageCallback", "EmaCallback", "MergeCallback", "WindowCallback"]

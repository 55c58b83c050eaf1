"""Decompositions of a layer's score tensor: pure tensor maths, without transformers."""

from .expressivity import attention_rank, head_attention, least_log_error, logit_rank, representing_weights
from .moments import Moments, MomentsAccumulator
from .problem import Problem, decompose
from .score_tensor import ScoreTensor

__all__ = [
    "Moments",
    "MomentsAccumulator",
    "Problem",
    "ScoreTensor",
    "attention_rank",
    "decompose",
    "head_attention",
    "least_log_error",
    "logit_rank",
    "representing_weights",
]

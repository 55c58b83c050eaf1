"""Decompositions of a layer's score tensor: pure tensor maths, without transformers."""

from .moments import Moments, MomentsAccumulator
from .problem import Problem, decompose
from .score_tensor import ScoreTensor

__all__ = ["Moments", "MomentsAccumulator", "Problem", "ScoreTensor", "decompose"]

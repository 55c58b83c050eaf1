"""Decompositions of a layer's score tensor: pure tensor maths, without transformers."""

from .interface import Problem, decompose
from .moments import Moments, MomentsAccumulator
from .score_tensor import ScoreTensor

__all__ = ["Moments", "MomentsAccumulator", "Problem", "ScoreTensor", "decompose"]

"""Random score tensors and moments for the tests of the decompositions."""

import torch

from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import Moments, ScoreTensor

# Every form that a plan can take, for a layer of 4 heads of 6 and width 24.
PLANS = {
    "cp": LayerPlan("cp", 10, 10, 10),
    "sparse cp": LayerPlan("cp", 12, 12, 4),
    "svd": LayerPlan("svd", 10, 10, 6),
    "copy": LayerPlan("copy", 24, 24, 6),
    "tucker": LayerPlan("tucker", 10, 7, 7),
    "narrowed tucker": LayerPlan("tucker", 10, 9, 4),
    "tied": LayerPlan("tucker", 10, 10, 4, tied=True),
    "tied, key read whole": LayerPlan("tucker", 9, 9, 9, tied=True),
    "key groups": LayerPlan("tucker", 10, 8, 4, key_groups=2),
    "head rank": LayerPlan("tucker", 10, 8, 8, head_rank=2),
    "key groups and head rank": LayerPlan("tucker", 10, 8, 4, key_groups=2, head_rank=3),
}


def random_scores(
    heads: int = 4, size: int = 24, key_size: int = 24, head_dim: int = 6, bias: bool = True, seed: int = 0
) -> ScoreTensor:
    """Gaussian factors whose columns fall off, as those of trained heads do."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decay = 0.8 ** torch.arange(head_dim, dtype=torch.float64)
    query, key = normal(heads, size, head_dim) * decay, normal(heads, key_size, head_dim)
    return ScoreTensor(query, key, normal(heads, head_dim) if bias else None)


def random_samples(size: int = 24, count: int = 200, seed: int = 1) -> torch.Tensor:
    """Correlated rows (count, size) with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    rows = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return rows @ spread + torch.randn(size, generator=generator, dtype=torch.float64)


def random_moments(size: int = 24, count: int = 200, seed: int = 1) -> Moments:
    """Moments of such rows."""
    return Moments.from_samples(random_samples(size, count, seed))


def relative_error(scores: ScoreTensor, approximation: torch.Tensor) -> float:
    """||T - T^||_F / ||T||_F from the dense tensors."""
    dense = scores.to_dense()
    return float((dense - approximation).norm() / dense.norm())

"""Random linear layers for the tests of what their columns can do without."""

import torch

WIDTH, OUT = 48, 20
# H has a condition of at most WIDTH / damping = 5e5: a solve loses that much of float64's 1e-16.
ROUNDING = 1e-10


def layer(width: int = WIDTH, out: int = OUT) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(out, width, dtype=torch.float64), torch.randn(out, dtype=torch.float64)


def measured(rows, weight, bias, kept, new_weight, new_bias, output_weights=None) -> float:
    """Relative squared error of the outputs of these very rows."""
    scale = 1.0 if output_weights is None else output_weights
    dense = (rows @ weight.T + bias) * scale
    error = dense - (rows[:, kept] @ new_weight.T + new_bias) * scale
    return float(error.square().sum() / (dense - dense.mean(0)).square().sum())

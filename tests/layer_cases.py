"""Dense torch modules and inputs for the tests of the layers."""

import itertools

import torch
from torch import nn

from collab_hf.modeling.plan import LayerPlan

SIZE, HEADS, LENGTH, KEYS, BATCH = 24, 4, 5, 7, 2


def full_rank_plans(kdim=SIZE):
    """Every form at the rank where it is exact, for SIZE and HEADS."""
    key = min(SIZE, kdim)
    plans = {
        "copy": LayerPlan("copy", 24, 24, 6),
        "cp": LayerPlan("cp", 24, 24, 24),
        "sparse cp": LayerPlan("cp", 24, 24, 6),
        "svd": LayerPlan("svd", 24, 24, 6),
        "tucker": LayerPlan("tucker", 24, key, key),
        "narrowed tucker": LayerPlan("tucker", 24, key, 6),
    }
    if kdim == SIZE:
        plans["tied"] = LayerPlan("tucker", 24, 24, 6, tied=True)
    return plans


def dense_attention(seed=0, dtype=torch.float64, **options):
    """A torch module whose biases are not zero, as a trained one's are not."""
    torch.manual_seed(seed)
    dense = nn.MultiheadAttention(SIZE, HEADS, dtype=dtype, **options)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return dense.eval()


def inputs(dense, unbatched=False, keys=KEYS, seed=1):
    """Query, key and value in the module's layout."""
    generator = torch.Generator().manual_seed(seed)
    dtype = dense.out_proj.weight.dtype

    def tokens(length, width):
        rows = torch.randn(BATCH, length, width, generator=generator, dtype=torch.float64).to(dtype)
        if unbatched:
            return rows[0]
        return rows if dense.batch_first else rows.transpose(0, 1)

    return tokens(LENGTH, dense.embed_dim), tokens(keys, dense.kdim), tokens(keys, dense.vdim)


def mask_cases(unbatched=False, keys=KEYS, dtype=torch.float64, seed=2):
    """Masks by name, as arguments of forward; no query is left without a key."""
    generator = torch.Generator().manual_seed(seed)
    copies = HEADS if unbatched else BATCH * HEADS
    blocked = {2: torch.rand(LENGTH, keys, generator=generator) < 0.4}
    blocked[3] = torch.rand(copies, LENGTH, keys, generator=generator) < 0.4
    padded = torch.zeros(BATCH, keys, dtype=torch.bool)
    padded[0, -2:] = True
    padded = padded[0] if unbatched else padded
    added = {n: torch.randn(b.shape, generator=generator, dtype=dtype) for n, b in blocked.items()}
    for mask in blocked.values():
        mask[..., 0] = False
    padding = torch.randn(padded.shape, generator=generator, dtype=dtype).masked_fill(padded, -torch.inf)
    attention = {"no mask": None, "boolean": blocked[2], "additive": added[2]}
    attention |= {"boolean per head": blocked[3], "additive per head": added[3]}
    paddings = {"no padding": None, "boolean padding": padded, "additive padding": padding}
    for (name, mask), (other, pad) in itertools.product(attention.items(), paddings.items()):
        if mask is None or pad is None or mask.dtype == pad.dtype:  # torch warns of a mixture
            yield f"{name}, {other}", {"attn_mask": mask, "key_padding_mask": pad}


def assert_same(got, want, tolerance=1e-6):
    """Outputs and weights of two attention modules."""
    assert (got[1] is None) == (want[1] is None)
    for one, other in zip(got, want, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)

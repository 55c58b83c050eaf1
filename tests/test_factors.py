from dataclasses import replace

import pytest
import tensorly
import torch
from tensor_cases import PLANS, random_scores

from collab_hf.modeling.plan import LayerPlan
from collab_hf.tensors import decompose


@pytest.mark.parametrize("name", PLANS)
def test_tensorly_containers_expand_to_the_same(name):
    factors = decompose(random_scores(), PLANS[name])
    container = factors.to_tensorly()
    assert type(container).__name__ == ("TuckerTensor" if factors.plan.method == "tucker" else "CPTensor")
    assert container.shape == (24, 4, 24)
    expanded = torch.as_tensor(tensorly.to_numpy(container.to_tensor())).transpose(0, 1)
    assert torch.allclose(expanded, factors.expand(), atol=1e-12)


def test_tensorly_container_keeps_the_head_rank():
    core, (_, head, _) = decompose(random_scores(), PLANS["head rank"]).to_tensorly()
    assert core.shape == (10, 2, 8)
    assert head.shape == (4, 2)


def test_expanded_content_bias_is_that_of_the_mixing():
    factors = decompose(random_scores(), replace(PLANS["narrowed tucker"], content_bias="folded"))
    right = factors.shared_key @ factors.mixing.key_maps()
    expected = torch.einsum("hjw,hw->hj", right, factors.mixing.bias.detach())
    assert torch.allclose(factors.expand_content_bias(), expected)
    assert factors.content_bias is None


def test_operations_of_copy_are_those_of_dense_attention():
    factors = decompose(random_scores(), replace(PLANS["copy"], content_bias="folded"))
    length = 5
    projections = 2 * 2 * 24 * 24 * length
    assert factors.flops(length) == projections + 2 * 4 * 6 * length**2


@pytest.mark.parametrize(
    ("plan", "mixing"),
    [
        (LayerPlan("cp", 10, 10, 10), 4 * 10),
        (LayerPlan("cp", 10, 10, 3), 4 * 3),
        (LayerPlan("svd", 10, 10, 6), 0),
        (LayerPlan("tucker", 10, 7, 7), 2 * 4 * 7 * 10),
        (LayerPlan("tucker", 10, 9, 4), 2 * 4 * 4 * (10 + 9)),
        (LayerPlan("tucker", 10, 8, 4, key_groups=2), 2 * 4 * 4 * 10),
    ],
)
def test_operations_are_counted_by_form(plan, mixing):
    factors = decompose(random_scores(), replace(plan, content_bias="folded"))
    plan, length = factors.plan, 7
    per_token = 2 * 24 * (plan.query_rank + plan.key_rank) + mixing
    assert factors.flops(length) == length * per_token + 2 * 4 * plan.score_width * length**2
    exact = decompose(random_scores(), replace(plan, content_bias="exact"))
    assert exact.flops(length) == factors.flops(length) + 2 * 24 * 4 * length + 4 * length**2

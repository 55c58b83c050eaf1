from dataclasses import replace

import pytest
import tensorly
import torch
from tensor_cases import PLANS, random_scores

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

"""Gates and importance on the heads of every family."""

import pytest
import torch
from family_models import CASES, build
from test_families import difference, run

from collab_hf import heads
from collab_hf.modeling.families import Slot
from collab_hf.parts.heads.gates import changed_heads

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


@pytest.mark.parametrize("name", CASES)
def test_a_gate_at_zero_is_a_head_whose_columns_are_zero(name):
    model = build(name)
    sites = heads.head_sites(model)
    whole = run(model, name)
    with heads.gated(model, {title: torch.ones(site.num_heads) for title, site in sites.items()}):
        assert difference(run(model, name), whole) == 0
    seen = set()

    def see(title, states):
        seen.add(title)
        assert states.shape[-2] == sites[title].num_heads
        return states

    with changed_heads(model, see):
        run(model, name)
    title = next(title for title in sites if title in seen)  # towers that these inputs don't reach stay out
    with heads.gated(model, heads.without(model, [(title, 1)])):
        off = run(model, name)
    weight = Slot(sites[title].output).weight
    width = weight.shape[1] // sites[title].num_heads
    with torch.no_grad():
        weight[:, width : 2 * width] = 0
    assert difference(run(model, name), off) < 1e-6
    assert difference(off, whole) > 1e-6  # negative control


@pytest.mark.parametrize("name", CASES)
def test_heads_are_scored_without_labels(name):
    scores = heads.score_heads(build(name), [CASES[name].inputs()], normalize=False)
    assert all(bool(torch.isfinite(values).all()) for values in scores.importance.values())
    assert all(float(values.sum()) > 0 for values in scores.importance.values())

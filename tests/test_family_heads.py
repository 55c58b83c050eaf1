"""Gates and importance on the heads of every family."""

import pytest
import torch
from family_models import ALL, build
from test_families import difference, run

from collab_hf import CollabConfig, compress_, heads
from collab_hf.modeling.families import Slot
from collab_hf.parts.heads.gates import changed_heads

# WavLM's forward reads the weight of its output projection, and never calls it.
NAMES = [name for name in ALL if name != "wavlm"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_decoder.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_scored_without_labels(name):
    scores = heads.score_heads(build(name), [ALL[name].inputs()], normalize=False)
    assert all(bool(torch.isfinite(values).all()) for values in scores.importance.values())
    assert all(float(values.sum()) > 0 for values in scores.importance.values())


@pytest.mark.parametrize("name", ["gpt2", "modernbert", "olmo"])
def test_heads_go_where_queries_and_keys_stay_or_are_joined(name):
    settings = {"num_key_value_heads": 4} if name == "olmo" else {}  # several that share a key go together
    model, data = build(name, **settings), [ALL[name].inputs()] * 4
    before = run(model, name)
    plans = heads.pruning_plan(model, data, 0.3)
    compress_(model, CollabConfig(plans={"heads": {k: plan.to_dict() for k, plan in plans.items()}}), data)
    counts = {title: site.num_heads for title, site in heads.head_sites(model).items()}
    assert {title: counts[title] for title in plans} == {t: len(plan.kept) for t, plan in plans.items()}
    assert 0 < difference(run(model, name), before) < 1

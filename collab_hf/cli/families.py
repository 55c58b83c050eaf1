"""`collab-hf families`: which models collab_hf knows, and what it can make smaller in them."""

from __future__ import annotations

from collab_hf.cli import options
from collab_hf.cli.answers import Answer
from collab_hf.layout import table

EXAMPLE = "Example: collab-hf families --json"


def families(
    quiet: options.Quiet = False, verbose: options.Verbose = False, as_json: options.AsJson = False
) -> Answer:
    """List model types, the parts that can be made smaller in each, and why others can't."""
    from collab_hf.host.support import PARTS, supported_models, why_not

    models = supported_models()
    rows = [
        [
            one.model_type,
            *("no" if one.parts[part] else "yes" for part in PARTS),
            why_not(one),
        ]
        for one in models
    ]
    values = {"families": [{"model_type": one.model_type, **one.parts, "note": one.note} for one in models]}
    return Answer(values, table(["model type", *PARTS, "why not"], rows))

"""Bad compressed checkpoints, case by case: what is spoiled, and what the one sentence must say."""

from bad_input_cases import Case
from bad_inputs import (
    DEEP,
    LAYER,
    entries,
    filled,
    plan,
    raw,
    section,
    settings,
    without,
    written,
)

# What `verify` reads of a compressed one.
SECTION: dict[str, Case] = {
    "a list": (settings(collab=[1]), "must be a mapping, got [1]"),
    "text": (settings(collab="tucker"), "must be a mapping, got 'tucker'"),
    "true": (settings(collab=True), "must be a mapping, got True"),
    "null": (settings(collab=None), "has shape (6, 24), where config.json says (24, 24)"),
    "empty": (settings(collab={}), "has shape (6, 24), where config.json says (24, 24)"),
    "format of text": (
        section("format", value="2"),
        "the collab format in config.json must be from 1 to 2, got",
    ),
    "format null": (
        section("format", value=None),
        "the collab format in config.json must be from 1 to 2, got",
    ),
    "format true": (
        section("format", value=True),
        "the collab format in config.json must be from 1 to 2, got",
    ),
    "format newer": (
        section("format", value=99),
        "this checkpoint has collab format 99, newer than 2; update",
    ),
    "format negative": (
        section("format", value=-1),
        "the collab format in config.json must be from 1 to 2, got -1",
    ),
    "layers a list": (
        section("layers", value=[LAYER]),
        "layers of collab in config.json must be a mapping, got",
    ),
    "layers null": (
        section("layers", value=None),
        "layers of collab in config.json must be a mapping, got None",
    ),
    "layers empty": (section("layers", value={}), "has shape (6, 24), where config.json says (24, 24)"),
    "layer a list": (section("layers", LAYER, value=["tucker"]), "cannot read the collab settings of"),
    "layer null": (section("layers", LAYER, value=None), "cannot read the collab settings of"),
    "layer text": (section("layers", LAYER, value="dense"), "cannot read the collab settings of"),
    "layer empty": (section("layers", LAYER, value={}), "cannot read the collab settings of"),
    "layer elsewhere": (
        section("layers", "pooler", value={"method": "copy"}),
        "cannot read the collab settings of pooler: query_rank is",
    ),
    "method unknown": (plan(method="magic"), "method must be one of cp, tucker, svd, copy, got 'magic'"),
    "method a list": (plan(method=["tucker"]), "method must be text, got ['tucker']"),
    "method another": (plan(method="svd"), "the checkpoint does not fit its config.json: missing factor"),
    "rank of text": (plan(query_rank="6"), "query_rank must be a whole number, got '6'"),
    "rank a float": (plan(query_rank=6.0), "query_rank must be a whole number, got 6.0"),
    "rank true": (plan(query_rank=True), "query_rank must be a whole number, got True"),
    "rank zero": (plan(query_rank=0), "query_rank must be between 1 and 24, got 0"),
    "rank negative": (plan(query_rank=-6), "query_rank must be between 1 and 24, got -6"),
    "rank huge": (plan(query_rank=10**30), "query_rank must be between 1 and 24, got"),
    "rank missing": (plan(query_rank=None), "cannot read the collab settings of"),
    "key rank a list": (plan(key_rank=[6]), "key_rank must be a whole number, got [6]"),
    "key rank another": (plan(key_rank=4), "score_width must be between 1 and 4, got 6"),
    "groups zero": (plan(key_groups=0), "key_rank must be between 1 and 0, got 6"),
    "groups of text": (plan(key_groups="2"), "key_groups must be a whole number, got '2'"),
    "groups a list": (plan(key_groups=[2]), "key_groups must be a whole number, got [2]"),
    "groups too many": (plan(key_groups=6), "key_groups must be between 1 and 3, got 6"),
    "width of text": (plan(score_width="4"), "score_width must be a whole number, got '4'"),
    "width above": (plan(score_width=5000), "score_width must be between 1 and 6, got 5000"),
    "head rank of text": (plan(head_rank="2"), "head_rank must be a whole number, got '2'"),
    "head rank zero": (plan(head_rank=0), "head_rank must be between 1 and 3, got 0"),
    "tied of text": (plan(tied="yes"), "tied must be true or false, got 'yes'"),
    "tied a number": (plan(tied=1), "tied must be true or false, got 1"),
    "bias unknown": (plan(content_bias="both"), "content_bias must be exact or folded, got 'both'"),
    "bias a list": (plan(content_bias=["exact"]), "content_bias must be text, got ['exact']"),
    "unknown entry": (plan(colour="red"), "cannot read the collab settings of"),
    "mixing unknown": (
        section("mixing", value="magic"),
        "mixing must be one of concatenate, ones, random, got 'magic'",
    ),
    "mixing a list": (
        section("mixing", value=["a"]),
        "mixing must be one of concatenate, ones, random, got ['a']",
    ),
    "heads a list": (
        section("heads", value=[LAYER]),
        "heads of collab in config.json must be a mapping, got",
    ),
    "heads of text": (
        section("heads", value={LAYER: {"kept": "all"}}),
        "kept heads must be a list of numbers, got 'all'",
    ),
    "heads a number": (
        section("heads", value={LAYER: {"kept": 2}}),
        "kept heads must be a list of numbers, got 2",
    ),
    "heads of floats": (
        section("heads", value={LAYER: {"kept": [0.0, 1.0]}}),
        "heads must be rising numbers from 0 to 2, at least one, got",
    ),
    "heads outside": (
        section("heads", value={LAYER: {"kept": [0, 7]}}),
        "heads must be rising numbers from 0 to 2, at least one, got",
    ),
    "heads empty": (
        section("heads", value={LAYER: {"kept": []}}),
        "heads must be rising numbers from 0 to 2, at least one, got",
    ),
    "heads mixed": (
        section("heads", value={LAYER: {"kept": [0, "a"]}}),
        "heads must be rising numbers from 0 to 2, at least one, got",
    ),
    "heads unlike the weights": (
        section("heads", value={LAYER: {"kept": [0]}}),
        "the checkpoint does not fit its config.json: wrong-shaped",
    ),
    "values of text": (
        section("value_output", value={LAYER: {"width": "4"}}),
        "value width must be between 1 and 8, got '4'",
    ),
    "values too wide": (
        section("value_output", value={LAYER: {"width": 9}}),
        "value width must be between 1 and 8, got 9",
    ),
    "neurons null": (
        section("feed_forward", value={"encoder.layer.1": {"width": None}}),
        "feed-forward width must be between 1 and 48, got None",
    ),
    "neurons elsewhere": (
        section("feed_forward", value={LAYER: {"width": 4}}),
        "config.json has collab settings for",
    ),
    "neurons unlike the weights": (
        section("feed_forward", value={"encoder.layer.1": {"width": 4}}),
        "the checkpoint does not fit its config.json: wrong-shaped",
    ),
    "embeddings of text": (
        section("embeddings", value={"embeddings.word_embeddings": {"rank": "4"}}),
        "embedding rank must be between 1 and 24, got '4'",
    ),
    "embeddings too wide": (
        section("embeddings", value={"embeddings.word_embeddings": {"rank": 25}}),
        "embedding rank must be between 1 and 24, got 25",
    ),
    "embeddings elsewhere": (
        section("embeddings", value={"pooler": {"rank": 4}}),
        "config.json has collab settings for pooler, which is no",
    ),
    "dense type": (settings(model_type="bert"), "is of model_type bert, and names CollabBertModel, which is"),
    "report cut": (
        written("collab_report.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "report a list": (written("collab_report.json", "[]"), "must hold a mapping, got a list"),
    "report deep": (written("collab_report.json", DEEP), "can't be read: it is nested too deeply"),
    "report bytes": (
        written("collab_report.json", b"\xff\xfe"),
        "can't be read: 'utf-8' codec can't decode byte 0xff in",
    ),
    "report null": (written("collab_report.json", "null"), "must hold a mapping, got a NoneType"),
    "report layers a number": (
        entries("collab_report.json", layers=3),
        "is not a report of collab_hf: 'int' object is not iterable",
    ),
    "report rows of text": (
        entries("collab_report.json", layers=["a"]),
        "is not a report of collab_hf: string indices must be",
    ),
    "report counts of text": (
        entries("collab_report.json", layers=[{"method": "tucker", "qk_parameters_after": "a"}]),
        "is not a report of collab_hf: unsupported operand type(s)",
    ),
    "report of another": (
        entries("collab_report.json", layers=[]),
        "has 828 query/key parameters, collab_report.json says 0",
    ),
    "factor NaN": (
        filled(f"{LAYER}.query.weight", float("nan")),
        "encoder.layer.1.attention.self.query.weight in",
    ),
}

# What `heal` reads beside that, before it trains.
HEAL: dict[str, Case] = {
    "recipe cut": (
        written("collab_recipe.yaml", "a: [b"),
        'is not YAML: while parsing a flow sequence in "<unicode',
    ),
    "recipe a list": (written("collab_recipe.yaml", "- a"), "must be a mapping of settings, got list"),
    "recipe bytes": (
        written("collab_recipe.yaml", b"\xff\xfe\x00"),
        "is not YAML: 'utf-8' codec can't decode byte 0xff in",
    ),
    "recipe deep": (written("collab_recipe.yaml", "[" * 1000), "is not YAML: it is nested too deeply"),
    "recipe date": (
        written("collab_recipe.yaml", "model: 2020-99-99"),
        "is not YAML: month must be in 1..12",
    ),
    "recipe of a class": (
        written("collab_recipe.yaml", "model: !!python/object:os.system {}"),
        "is not YAML: could not determine a constructor for the tag",
    ),
    "recipe numbers as names": (
        written("collab_recipe.yaml", "1: 2"),
        "must be a mapping of settings, got dict",
    ),
    "recipe seed": (
        written("collab_recipe.yaml", "model: x\nseed: many"),
        "seed must be a whole number from 0 to 9223372036854775807,",
    ),
    "recipe examples": (
        written("collab_recipe.yaml", "model: x\ncalibration_examples: -1"),
        "calibration_examples must be a whole number of at least 1,",
    ),
    "recipe examples text": (
        written("collab_recipe.yaml", "model: x\ncalibration_examples: a"),
        "calibration_examples must be a whole number of at least 1,",
    ),
    "recipe share": (
        written("collab_recipe.yaml", "model: x\nshipped_share: 7"),
        "shipped_share must be in [0, 1), got 7",
    ),
    "recipe share list": (
        written("collab_recipe.yaml", "model: x\nshipped_share: []"),
        "shipped_share must be in [0, 1), got []",
    ),
    "report cut": (
        written("collab_report.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "report a list": (written("collab_report.json", "[]"), "must hold a mapping, got a list"),
    "report whole a list": (
        entries("collab_report.json", whole=[1]),
        "must have teacher_blocks, a list of numbers, got None",
    ),
    "report whole text": (
        entries("collab_report.json", whole="a"),
        "must have teacher_blocks, a list of numbers, got None",
    ),
    "report blocks": (
        entries("collab_report.json", whole={"teacher_blocks": 3}),
        "must have teacher_blocks, a list of numbers, got 3",
    ),
    "report blocks of text": (
        entries("collab_report.json", whole={"teacher_blocks": ["a", "b"]}),
        "teacher_blocks must be whole numbers of at least 0, got",
    ),
    "report blocks outside": (
        entries("collab_report.json", whole={"teacher_blocks": [0, 9]}),
        "teacher_blocks must be below 2, got (0, 9)",
    ),
    "report blocks too few": (
        entries("collab_report.json", whole={"teacher_blocks": [0]}),
        "the teacher does not fit: its num_hidden_layers is 1, the",
    ),
    "recovery cut": (
        written("collab_recovery.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "recovery a list": (written("collab_recovery.json", "[]"), "must hold a mapping, got a list"),
    "recovery deep": (written("collab_recovery.json", DEEP), "can't be read: it is nested too deeply"),
    "recovery bytes": (
        written("collab_recovery.json", b"\xff\xfe"),
        "can't be read: 'utf-8' codec can't decode byte 0xff in",
    ),
}


# What `push` reads.
PUSH: dict[str, Case] = {
    "config cut": (written("config.json", "{"), "can't be read: Expecting property name enclosed in double"),
    "config a list": (written("config.json", "[]"), "must hold a mapping, got a list"),
    "config dense": (without("collab"), "is not a compressed checkpoint: config.json has no collab"),
    "collab text": (settings(collab="a"), "must be a mapping, got 'a'"),
    "collab layer a list": (
        section("layers", LAYER, value=[1]),
        "say makes no card: 'list' object has no attribute 'get'",
    ),
    "collab layer empty": (section("layers", LAYER, value={}), "what config.json, recipe and reports in"),
    "architectures number": (settings(architectures=3), "must be a list of names, got 3"),
    "architectures of numbers": (settings(architectures=[3]), "must be a list of names, got [3]"),
    "type number": (settings(model_type=3), "must name a model_type, got 3"),
    "report cut": (
        written("collab_report.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "report a list": (written("collab_report.json", "[]"), "must hold a mapping"),
    "report layers number": (
        entries("collab_report.json", layers=3),
        "say makes no card: 'int' object is not iterable",
    ),
    "report layers text": (
        entries("collab_report.json", layers=["a"]),
        "say makes no card: string indices must be integers, not",
    ),
    "report layers empty rows": (
        entries("collab_report.json", layers=[{}]),
        "what config.json, recipe and reports in",
    ),
    "report layers null": (
        entries("collab_report.json", layers=None),
        "say makes no card: 'NoneType' object is not iterable",
    ),
    "report rows wrong": (
        entries("collab_report.json", layers=[{"name": 3, "method": [], "qk_parameters_before": "a"}]),
        "say makes no card: Cannot specify ',' with 's'.",
    ),
    "report whole text": (
        entries("collab_report.json", whole="a"),
        "say makes no card: 'str' object has no attribute 'get'",
    ),
    "report vocabulary text": (
        entries("collab_report.json", vocabulary="a"),
        "say makes no card: string indices must be integers, not",
    ),
    "report params text": (
        entries("collab_report.json", qk_parameters_before="a"),
        "say makes no card: Cannot specify ',' with 's'.",
    ),
    "report bytes": (
        written("collab_report.json", b"\xff"),
        "can't be read: 'utf-8' codec can't decode byte 0xff in",
    ),
    "report weight bytes": (
        entries("collab_report.json", weight_bytes_before="a"),
        "say makes no card: unsupported operand type(s) for /: 'str'",
    ),
    "recipe cut": (written("collab_recipe.yaml", "a: [b"), "can't be read: while parsing a flow sequence"),
    "recipe a list": (written("collab_recipe.yaml", "- a"), "must hold a mapping"),
    "recipe date": (
        written("collab_recipe.yaml", "model: 2020-99-99"),
        "can't be read: month must be in 1..12",
    ),
    "recovery cut": (
        written("collab_recovery.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "recovery a list": (written("collab_recovery.json", "[]"), "must hold a mapping"),
    "recovery text": (
        written("collab_recovery.json", '{"steps": "a", "seconds": [], "config": 3}'),
        "say makes no card: 'int' object has no attribute 'get'",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no safetensors weights"),
    "weights cut": (raw(lambda c: c[:-10]), "incomplete metadata, file not fully covered"),
    "code missing": (
        lambda d: (d / "modeling_collab.py").unlink(),
        "lacks modeling_collab.py, which trust_remote_code needs;",
    ),
}

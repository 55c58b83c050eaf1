"""Every file name of a checkpoint, and which of them hold weights."""

from __future__ import annotations

# At a checkpoint's top: weights and code, which are written anew, and what Trainer keeps of a run.
WRITTEN_ANEW = (
    "*.safetensors",
    "*.bin",
    "*.index.json",
    "*.py",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.pt",
    "checkpoint-*",
)
# Weights in every form that the Hub has: what a compression writes anew, and what a push replaces as a whole.
WEIGHT_FILES = (
    *("*.safetensors", "*.bin", "*.index.json", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.tflite", "*.ckpt"),
    *("*.onnx", "*.onnx_data", "*.mlmodel", "*.mlpackage/*", "onnx/*", "openvino/*", "coreml/*"),
)
# Files that a compressed checkpoint carries beside its weights.
RECIPE_FILE = "collab_recipe.yaml"
REPORT_FILE = "collab_report.json"
CARD_FILE = "README.md"
# What a healed checkpoint says of its recovery.
RECOVERY_FILE = "collab_recovery.json"

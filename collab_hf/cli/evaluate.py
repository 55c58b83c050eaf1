"""`collab-hf evaluate`: how good a model is, or how close to another."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from collab_hf.cli import options
from collab_hf.cli.answers import Answer, start_reporting
from collab_hf.cli.closeness import closeness
from collab_hf.hub.source import Loading
from collab_hf.modeling.errors import ConfigError

if TYPE_CHECKING:
    from collab_hf.calibration.examples import Examples
    from collab_hf.measure.evaluation import Accuracy, Agreement, Similarity
    from collab_hf.measure.perplexity import Perplexity
    from collab_hf.measure.retrieval import Retrieval

EXAMPLE = "Example: collab-hf evaluate bert-quarter --task agreement --against bert-base-uncased"


def evaluate(
    model: options.Model,
    task: Annotated[
        Literal["stsb", "agreement", "retrieval", "accuracy", "perplexity"],
        typer.Option(
            metavar="TASK",
            help="stsb: correlation of embedding cosines with human scores; agreement: cosine of embeddings "
            "with those of --against; retrieval: share of the 10 nearest neighbours that --against finds "
            "too; accuracy: of a sequence classifier; perplexity: of a causal language model.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="stsb: TSV with the columns sentence1, sentence2 and score. accuracy: TSV with sentence and "
            "label. perplexity: a text file with one a line. agreement and retrieval: the same or a folder "
            "of images; by default examples that ship with the package. Of what calibrated MODEL, only what "
            "was set aside before is read.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="agreement and retrieval: the model to compare with.")
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use at most N examples, spread over the data.")
    ] = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = 128,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    revision: options.Revision = None,
    subfolder: options.Subfolder = "",
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Measure a model on a task, or compare it with another model."""
    compares = task in ("agreement", "retrieval")
    if compares and against is None:
        raise ConfigError(f"task {task} needs --against MODEL, the model to compare with")
    if not compares and against is not None:
        raise ConfigError(f"--against belongs to tasks agreement and retrieval, got it with task {task}")
    if not compares and data is None:
        kind = "a text file" if task == "perplexity" else "a tab-separated file"
        raise ConfigError(f"task {task} needs --data FILE, {kind}")
    watched = start_reporting()
    loading = Loading(dtype, device, revision, subfolder, token, trust_remote_code)
    sizes = {"batch_size": batch_size, "max_length": max_length}
    found: Agreement | Retrieval | Similarity | Accuracy | Perplexity
    read: dict[str, str] = {}
    if against is not None:
        judges = _judges(model, data or "default", max_examples or 1000, loading)
        read["read"] = judges.origin
        retrieval = task == "retrieval"
        found = _compare(model, against, judges, loading, sizes, watched, retrieval=retrieval)
    elif task == "stsb":
        found = _similarity(model, Path(data or ""), max_examples, loading, sizes, watched)
    elif task == "perplexity":
        found = _perplexity(model, data or "", max_examples, loading, sizes, watched)
    else:
        found = _accuracy(model, Path(data or ""), max_examples, loading, sizes, watched)
    values = {**asdict(found), **read}
    text = "\n".join(f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in values.items())
    if "mean_cosine" in values:
        text += f"\nagainst {against}: {closeness(float(values['mean_cosine']))}"
    return Answer({"model": model, "task": task, "data": data, "against": against, **values}, text)


def _similarity(
    name: str,
    data: Path,
    max_examples: int | None,
    loading: Loading,
    sizes: dict[str, int],
    watched: bool,
) -> Similarity:
    from collab_hf.measure.evaluation import measure_similarity
    from collab_hf.measure.tables import read_scores

    pairs, scores = read_scores(data, max_examples)  # first: a mistake here is cheap to find
    model, tokenizer = loading.model(name), loading.processor(name)
    return measure_similarity(model, tokenizer, pairs, scores, **sizes, progress=watched)


def _accuracy(
    name: str,
    data: Path,
    max_examples: int | None,
    loading: Loading,
    sizes: dict[str, int],
    watched: bool,
) -> Accuracy:
    from collab_hf.measure.evaluation import measure_accuracy
    from collab_hf.measure.tables import read_table

    rows = read_table(data, ("sentence", "label"), max_examples)
    sentences, labels = [row[0] for row in rows], [row[1] for row in rows]
    model, tokenizer = loading.model(name), loading.processor(name)
    return measure_accuracy(model, tokenizer, sentences, labels, **sizes, progress=watched)


def _perplexity(
    name: str,
    data: str,
    max_examples: int | None,
    loading: Loading,
    sizes: dict[str, int],
    watched: bool,
) -> Perplexity:
    from collab_hf.calibration.sources import read_texts
    from collab_hf.measure.perplexity import measure_perplexity

    texts = read_texts(data, max_examples or sys.maxsize, seed=0)
    model, tokenizer = loading.model(name), loading.processor(name)
    return measure_perplexity(model, tokenizer, texts, **sizes, progress=watched)


@dataclass(frozen=True)
class _Judges:
    """Examples that a model is compared on, and in words where they come from."""

    examples: Examples
    processor: Any
    origin: str


def _judges(name: str, data: str, most: int, loading: Loading) -> _Judges:
    """What neither calibration nor recovery read of the data, as far as the checkpoint knows."""
    from collab_hf.calibration.pools import read_pools
    from collab_hf.recipe import Recipe, public_source, read_by

    processor, directory = loading.processor(name), loading.files(name)
    shipped, known = data == "default", public_source(data) in read_by(directory)
    pools = read_pools(data, processor, **{**Recipe.sampling(directory), "shipped_share": 0.0})
    origin = "examples that ship with the package" if shipped else public_source(data)
    if (shipped or known) and len(pools.held_out):
        aside = pools.held_out.at_most(most, 0)
        return _Judges(aside, processor, f"{origin}: those set aside from calibration")
    unknown = "calibration read it too" if known else "calibration is not known to have read it"
    return _Judges(pools.everything.at_most(most, 0), processor, f"{origin}: {unknown}")


def _compare(
    name: str,
    against: str,
    judges: _Judges,
    loading: Loading,
    sizes: dict[str, int],
    watched: bool,
    *,
    retrieval: bool,
) -> Agreement | Retrieval:
    """What is left of the original's embeddings, or of the neighbours that they have."""
    from collab_hf.calibration.examples import batches_of
    from collab_hf.measure.evaluation import measure_agreement
    from collab_hf.measure.retrieval import measure_retrieval

    model = loading.model(name)
    reference = replace(loading, revision=None, subfolder="").reference(against, model, judges.processor)
    batches = batches_of(judges.examples, judges.processor, config=model.config, **sizes)
    if retrieval:
        return measure_retrieval(model, reference, batches, progress=watched)
    return measure_agreement(model, reference, batches, progress=watched)


def _plain(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

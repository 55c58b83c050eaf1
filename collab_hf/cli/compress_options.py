"""The options of `compress`."""

from __future__ import annotations

from typing import Annotated

import typer

from collab_hf.asked_parts import PART_NAMES, PORTABLE_PARTS, VOCABULARY

Rank = Annotated[int | None, typer.Option(metavar="N", help="Width of both shared projections.")]
QueryRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of the shared query.")]
KeyRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of the shared key.")]
KeyGroups = Annotated[
    int | None, typer.Option(metavar="G", help="tucker: groups of heads; each has its own key.")
]
HeadRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: rank of the core along the heads.")]
ScoreWidth = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of a head's score product.")]
Tied = Annotated[bool, typer.Option("--tied", help="tucker: one shared projection for queries and keys.")]
DimsPerHead = Annotated[
    int | None, typer.Option(metavar="K", help="cp: shared dimensions that each head uses (sparse mixing).")
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Keep at most this share of the query/key parameters, in (0, 1].  [default: the knee of the "
        "curve with auto, else 0.25]",
    ),
]
TargetParams = Annotated[
    int | None, typer.Option(metavar="N", help="auto: keep at most this many query/key parameters.")
]
TargetFlops = Annotated[
    str | None,
    typer.Option(
        metavar="LENGTH:SHARE",
        help="auto: at this sequence length, keep at most this share of the operations for queries, keys "
        "and scores.",
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(metavar="X", help="auto: let the hidden states diverge from the original's by at most X."),
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,..",
        help="Layers to compress: self, cross, encoder, decoder, text or vision, or several joined by `-`, "
        "such as decoder-cross.  [default: all]",
    ),
]
Backbone = Annotated[
    bool,
    typer.Option(
        "--backbone", help="Load MODEL without its task head, and leave out weights that nothing reads."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan with its size, cost and loss; write nothing.")
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|DATASET|none",
        help="Examples of what the model reads: a text file with one a line, a folder of images, or a data "
        "set. `default` takes those that ship with the package; `none` uses the weights alone.  "
        "[default: default]",
    ),
]
CalibrationExamples = Annotated[
    int | None, typer.Option(metavar="N", help="Use at most N calibration examples.  [default: 1000]")
]

HealSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Run recovery for N updates afterwards; 0 for none.  [default: 400 with --speedup, --flops, "
        "--params or --size, else none]",
    ),
]
HealMinutes = Annotated[
    float | None,
    typer.Option(metavar="M", help="Run recovery for M minutes afterwards, instead of a number of updates."),
]
RecoveryData = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|DATASET",
        help="Data for recovery. More text helps more than more updates.  [default: the calibration data]",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Whole model: make it X times as fast as the original on this machine, at --length and "
        "--batch-size.",
    ),
]
Flops = Annotated[
    float | None,
    typer.Option(
        metavar="F", help="Whole model: keep at most this share of the layers' operations, at --length."
    ),
]
Params = Annotated[
    float | None, typer.Option(metavar="F", help="Whole model: keep at most this share of all parameters.")
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Whole model: keep the weights' files at most this large, such as 30MB."
    ),
]
PartNames = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help=f"Whole model: parts that may become smaller, from {', '.join(PART_NAMES)}, with commas.  "
        f"[default: all of these] With --portable: {' and '.join(PORTABLE_PARTS)} (blocks are whole layers). "
        f"`{VOCABULARY}` is never taken unasked; it also works alone.",
    ),
]
VocabularyFrom = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DATASET",
        help="With vocabulary in --parts: drop every token that this text never uses, before anything else.",
    ),
]
Portable = Annotated[
    bool,
    typer.Option(
        "--portable",
        help="Whole model: keep the original's own class, so that the result loads anywhere without "
        "collab_hf. Whole layers go, and all feed-forwards get one width.",
    ),
]
Length = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens in a sequence, for --speedup and --flops.  [default: 128]"),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Sequences in a batch, for --speedup.  [default: 8]")
]
ReconstructSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="After the decomposition, fit each layer's factors to its attention output on the calibration "
        "examples, in N gradient steps; 0 for none.  [default: 75]",
    ),
]

"""The options of `compress`."""

from __future__ import annotations

from typing import Annotated

import typer

Rank = Annotated[int | None, typer.Option(metavar="N", help="Width of both shared projections.")]
QueryRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of the shared query.")]
KeyRank = Annotated[int | None, typer.Option(metavar="N", help="tucker: width of the shared key.")]
KeyGroups = Annotated[int | None, typer.Option(metavar="G", help="tucker: groups of heads, each with a key.")]
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
        help="Share of query/key parameters to keep at most, in (0, 1].  [default: the knee of the curve "
        "with auto, else 0.25]",
    ),
]
TargetParams = Annotated[
    int | None, typer.Option(metavar="N", help="auto: query/key parameters to keep at most.")
]
TargetFlops = Annotated[
    str | None,
    typer.Option(
        metavar="LENGTH:SHARE",
        help="auto: at this sequence length, operations for queries, keys and scores at most this share of "
        "the dense ones.",
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(metavar="X", help="auto: greatest divergence of the hidden states from the original's."),
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,..",
        help="Layers to compress: self, cross, encoder, decoder, text, vision, or some joined by `-`, "
        "such as decoder-cross.  [default: all]",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, its size, cost and loss, and stop.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|DATASET|none",
        help="Examples of what the model reads: text one a line, images in a folder, or a data set; "
        "`default` is what ships with the package, `none` decomposes the weights alone.  [default: default]",
    ),
]
CalibrationExamples = Annotated[
    int | None, typer.Option(metavar="N", help="Calibration examples at most.  [default: 1000]")
]

HealSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Recover for N updates afterwards, 0 for none.  [default: 400 with --speedup, --flops, --params "
        "or --size, else none]",
    ),
]
HealMinutes = Annotated[
    float | None,
    typer.Option(metavar="M", help="Recover for M minutes afterwards, not for a number of updates."),
]
RecoveryData = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|DATASET",
        help="What recovery reads; more text gains more than more updates.  [default: the calibration data]",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Whole model: X times as fast as the original on this machine, at --length and --batch-size.",
    ),
]
Flops = Annotated[
    float | None,
    typer.Option(metavar="F", help="Whole model: share of the layers' operations to keep, at --length."),
]
Params = Annotated[
    float | None, typer.Option(metavar="F", help="Whole model: share of all parameters to keep.")
]
Size = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Whole model: most that the weights may take, such as 30MB."),
]
PartNames = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Whole model: what may become smaller, of query_key, heads, value_output, feed_forward "
        "and embeddings, with commas.  [default: all]",
    ),
]
Length = Annotated[int | None, typer.Option(metavar="N", help="Tokens a sequence.  [default: 128]")]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Sequences at once.  [default: 8]")]
ReconstructSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Gradient steps for each layer that fit its factors to its attention output on the calibration "
        "examples, after the decomposition; 0 for none.  [default: 75]",
    ),
]

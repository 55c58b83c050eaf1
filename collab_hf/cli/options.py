"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local directory of a checkpoint.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a compressed checkpoint.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(metavar="DTYPE", help="float32, bfloat16, float16, or auto: the checkpoint's dtype."),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")
]
Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of MODEL on the Hub.")
]
Subfolder = Annotated[str, typer.Option(metavar="PATH", help="Folder of the checkpoint inside MODEL.")]
Token = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="Hub access token; by default that of `hf auth login`.")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with MODEL.")]
BaseModel = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Hub id of the original, for the card, where MODEL was a local copy."),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Examples in a batch.")]
ShippedShare = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Share of the calibration texts that ship with the package, mixed with yours; recovery reads "
        "all that ship. 0 for none: for text of another language, or code.  [default: 0.5]",
    ),
]
MaxLength = Annotated[int, typer.Option(metavar="N", min=1, help="Cut texts to N tokens.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Report no progress; warnings and errors remain.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Report every step, and what libraries warn of.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]

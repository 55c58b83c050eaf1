"""One plan for all parts beside each part alone: what the table has."""

from pathlib import Path

import pytest

from bench_parts import SINGLE, main


def test_a_row_for_each_share(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"examples": 8, "evaluated": 4, "reconstruct_steps": 0}
    main(str(model), str(text), str(text), shares=[0.9], speedups=None, **sizes)  # type: ignore[arg-type]
    row = capsys.readouterr().out.splitlines()[-1]
    share, *cosines = row.strip("| ").split(" | ")
    assert share == "0.9"
    assert len(cosines) == 1 + len(SINGLE)
    assert 0.5 < float(cosines[0]) < 1
    assert all(cell == "-" or -1 <= float(cell) <= 1 for cell in cosines)

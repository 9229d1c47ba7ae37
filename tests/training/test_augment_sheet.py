"""The command `cifartune augment`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from searches import QUICK, cifartune


def test_it_draws_a_sheet(tmp_path: Path, data_root: Path) -> None:
    changes = [f"--set=base.augment.{v}" for v in ("crop=0", "flip=0.5", "invert=1.0")]
    result = cifartune("augment", QUICK, *changes, cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "augment.png\n"
    sheet = np.asarray(Image.open(tmp_path / "augment.png")).astype(int)
    last, first = sheet[-16 - 6 - 96 : -16 - 6], sheet[-16 - 5 * 102 : -16 - 4 * 102 - 6]
    assert sheet.shape[1] == 2 * 16 + 116 + 12 * 102
    pictures = slice(16 + 116, -16)
    # At strength 1 all levels are inverted; flipped or not, their sums tell.
    totals = first[:, pictures].sum((0, 2)) + last[:, pictures].sum((0, 2))
    columns = totals.reshape(12, 102)[:, :96].sum(1)
    assert np.array_equal(columns, np.full(12, 255 * 96 * 96 * 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "sheet.foo"], "sheet.foo: --out must end in .png"),
        (["--set", "base.augment.rotate=3"], "base.augment.rotate: unknown key"),
        (["--set", "base.augment.hue=0.7"], "at most 0.5"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, data_root: Path, arguments: list[str], message: str
) -> None:
    result = cifartune("augment", QUICK, *arguments, cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not [*tmp_path.iterdir()]

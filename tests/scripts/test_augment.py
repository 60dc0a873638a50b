"""The preview of the augmentation shows the classes in turn, reads no more than it shows, and touches no run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import InputError
from scripts.augment import main


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = ["id,path,label"]
    for number in range(6):
        Image.new("L", (20, 20), 40 * number).save(tmp_path / f"{number}.png")
        rows.append(f"{number},{number}.png,{'mel' if number in (4, 5) else 'nev'}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"out: {tmp_path / 'runs'}\ndata: {{source: table.csv, positive_label: mel, image_size: 16, channels: 1}}\n"
        "augment: {policy: none}\n"
    )
    return path


def brightness_of_rows(path: Path, number: int) -> list[int]:
    pixels = np.asarray(Image.open(path).convert("L")).astype(int)
    height = pixels.shape[0] / number
    return [int(np.median(pixels[int(row * height + 3) : int((row + 1) * height - 3), 3:13])) for row in range(number)]


def test_classes_take_turns_from_the_positives_on(config: Path, tmp_path: Path) -> None:
    main(config, out=tmp_path / "grid.png", images=4, columns=2)
    assert brightness_of_rows(tmp_path / "grid.png", 4) == [160, 0, 200, 40]
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_read_is_passed_over_and_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "4.png").write_bytes(b"")
    main(config, out=tmp_path / "grid.png", images=2, columns=2)
    told = capsys.readouterr().out
    assert "row 6, id '4': the file is empty (0 bytes)" in told and "on 2 images, 2 versions each" in told
    assert brightness_of_rows(tmp_path / "grid.png", 2) == [0, 200]
    for number in range(6):
        (tmp_path / f"{number}.png").unlink(missing_ok=True)
    with pytest.raises(InputError, match="no labelled image can be read"):
        main(config, out=tmp_path / "grid.png")

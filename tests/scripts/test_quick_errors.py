"""A mistake that needs no data to be seen is told before anything slow is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = "torch timm albumentations sklearn scipy pandas optuna"
PROGRAM = """
import sys
from importlib import import_module
from pathlib import Path
from configs.errors import InputError
slow, command, *given = sys.argv[1:]
try:
    import_module(f"scripts.{command}").main(Path(given[0]), *([given[1:]] if given[1:] else []))
except InputError as error:
    print(error)
print("slow:", *(name for name in slow.split() if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("command", "given", "told"),
    [
        ("run", ["gone.yaml"], "no such config file"),
        ("run", ["config.yaml", "trian.steps=3"], "did you mean 'train'"),
        ("run", ["config.yaml", "data.source=gone.csv"], "does not exist"),
        ("compare", ["config.yaml"], "data.source is not set"),
        ("pretrain", ["config.yaml", "pool.arm=semi"], "leave it out"),
        ("pseudo_label", ["gone.yaml"], "no such config file"),
        ("cluster", ["gone.yaml"], "no such config file"),
        ("export", ["gone"], "expected the folder of a finished run"),
        ("tune", ["config.yaml"], "no `space` in it"),
    ],
)
def test_nothing_slow_is_imported_for_a_mistake_in_the_call(
    tmp_path: Path, command: str, given: list[str], told: str
) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, SLOW, command, *given], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert told in said and said.splitlines()[-1] == "slow:"

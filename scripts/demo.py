"""`rarefind demo`: the whole pipeline on real digits, minutes on two CPU cores."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scripts.arguments import RestartOption
from scripts.command import run_command


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, overriding configs/demo.yaml")] = None,
    out: Annotated[Path, typer.Option(help="folder for the demo's data and run folder")] = Path("runs"),
    restart: RestartOption = False,
) -> None:
    """Run the whole pipeline on scikit-learn's handwritten digits: find the rare eights."""
    import configs
    from configs.load import load_config
    from scripts.pipeline import run_pipeline
    from trainers.digits import write_digits

    data = out / "demo-data"
    counts = write_digits(data)
    typer.echo(f"digits: {', '.join(f'{number} {part}' for part, number in sorted(counts.items()))} images in {data}")
    files = {"source": "table.csv", "test": "test.csv", "truth": "truth.csv"}
    here = [f"data.{key}={data / name}" for key, name in files.items()]
    here += [f"submit.sample={data / 'sample_submission.csv'}", f"out={out}"]
    preset = Path(configs.__file__).parent / "demo.yaml"
    pipeline = run_pipeline(load_config(preset, [*here, *(overrides or ())]), restart=restart)
    typer.echo(f"open {shlex.quote(str(pipeline.run_dir / 'report.html'))}")


if __name__ == "__main__":
    run_command(main)

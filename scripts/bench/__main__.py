"""`rarefind bench NAME`: a benchmark by name, both sides in one run; the last line printed is JSON."""

import importlib

import typer

from scripts.command import guarded, new_app

# name -> module with its `main`
BENCHMARKS = {
    "blend": "scripts.bench.blend",
    "data": "scripts.bench.data",
    "embed": "scripts.bench.embed",
    "duplicates": "scripts.bench.duplicates",
    "gaps": "scripts.bench.gaps",
    "learners": "scripts.bench.learners",
    "metrics": "scripts.bench.metrics",
    "pairs": "scripts.bench.pairs",
    "pool": "scripts.bench.pool",
    "propagate": "scripts.bench.propagate",
    "recipes": "scripts.bench.recipes",
    "screening": "scripts.bench.screening",
    "study": "scripts.bench.study",
    "train": "scripts.bench.train",
    "tuned": "scripts.bench.tuned",
}


def bench_app() -> typer.Typer:
    """The benchmarks as sub-commands."""
    app = new_app(no_args_is_help=True, help="Benchmarks, both sides in one run; the last line printed is JSON.")
    for name, module in BENCHMARKS.items():
        app.command(name)(importlib.import_module(module).main)
    return app


if __name__ == "__main__":
    guarded(bench_app())

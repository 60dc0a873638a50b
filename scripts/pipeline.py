"""The pipeline as stories: the run, from prepare to report; and what is made of frozen features: prepare, embed, probe.

Only here and in `scripts/steps/` is the whole config seen: each stage gets its section, its inputs as files, and a
fingerprint of both. A stage that is finished with the same fingerprint is skipped, so that changing the report never
retrains.
"""

from configs.errors import InputError
from configs.input_files import check_input_files
from configs.load import dump_config, load_config
from configs.schema import RunConfig
from configs.without_effect import settings_without_effect
from scripts.steps.cluster import cluster_step
from scripts.steps.compare_learners import compare_learners_step
from scripts.steps.embed import embed_step, networks_to_embed
from scripts.steps.ensemble import ensemble_step, say_if_like_chance
from scripts.steps.neighbours import neighbours_step
from scripts.steps.own_networks import check_label_use
from scripts.steps.predict import predict_step
from scripts.steps.prepare import check_later_stages, prepare_step
from scripts.steps.pretrain import pretrain_step
from scripts.steps.probe import probe_step
from scripts.steps.propagate import propagate_step
from scripts.steps.pseudo_label import pseudo_label_step
from scripts.steps.report import report_step
from scripts.steps.run_state import Pipeline, warn
from scripts.steps.submit import submit_step
from scripts.steps.train import train_step
from scripts.steps.voices import check_frozen, voices_step
from trainers import atomic
from trainers.run_lock import locked
from trainers.sheet import read_sheet
from trainers.source import read_truth

# Each in the order in which its steps run: the run; and stories of their own, which need no training.
STEPS = {
    "prepare": prepare_step,
    "pretrain": pretrain_step,
    "train": train_step,
    "predict": predict_step,
    "pseudo-label": pseudo_label_step,
    "voices": voices_step,
    "ensemble": ensemble_step,
    "submit": submit_step,
    "report": report_step,
}
STORIES = (
    STEPS,
    {"prepare": prepare_step, "neighbours": neighbours_step},
    *(
        {"prepare": prepare_step, "embed": embed_step, name: step}
        for name, step in {
            "probe": probe_step,
            "cluster": cluster_step,
            "propagate": propagate_step,
            "compare-learners": compare_learners_step,
        }.items()
    ),
)


def run_pipeline(
    config: RunConfig, *, until: str = "report", restart: bool = False, described: RunConfig | None = None
) -> Pipeline:
    """Bring every stage up to and including `until` up to date; one line per stage is printed.

    `described` is the user's config where a command set something in `config` itself. A submission that cannot be
    written does not keep the report from being written. Raises InputError for whatever the user can mend; finished
    outputs stay as they were.
    """
    story = next(steps for steps in STORIES if until in steps)
    names = list(story)
    wanted = names[: names.index(until) + 1]
    check_input_files(config)
    _check_sheets(config)
    if "embed" in wanted:
        networks_to_embed(config)  # before the images are read, which may take hours
        check_label_use(config.embed.networks, until)
    if "train" in wanted:
        check_frozen(config)
    if "train" in wanted or until in ("cluster", "propagate"):
        for line in settings_without_effect(described or config, None if "train" in wanted else until):
            warn(line)
    no_submission: InputError | None = None
    with locked(config.run_dir):
        kept = [] if "ensemble" in wanted else _judged_arms(config)
        pipeline = Pipeline(config, restart, kept_arms=kept)
        for name in wanted:
            try:
                story[name](pipeline)
            except InputError as error:
                if name != "submit" or until == "submit":
                    raise
                no_submission = error
            if name == "ensemble":  # metrics.json is of this config from now on
                _write_config(config)
            if name == "prepare":
                check_later_stages(pipeline, wanted)
        if "ensemble" not in wanted and not (config.run_dir / "metrics.json").exists():
            _write_config(described or config)
    if "ensemble" in wanted:
        say_if_like_chance(config.run_dir)
    if no_submission is not None:
        raise no_submission
    return pipeline


def _write_config(config: RunConfig) -> None:
    """Not before the stages are done, and not by those that leave metrics.json as it is: it tells what that is of."""
    atomic.write_text(config.run_dir / "config.yaml", dump_config(config))


def _judged_arms(config: RunConfig) -> list[str]:
    """The arms that metrics.json of the run is of; a command that leaves it as it is leaves their scores, too."""
    stored = config.run_dir / "config.yaml"
    if not stored.exists() or not (config.run_dir / "metrics.json").exists():
        return []
    try:
        return load_config(stored).arms
    except InputError:  # of another version
        return []


def _check_sheets(config: RunConfig) -> None:
    """A table that cannot be read is told at once, not when its stage comes, hours later."""
    if config.data.truth is not None:
        read_truth(config.data.truth)
    if config.submit.sample is not None:
        read_sheet(config.submit.sample)

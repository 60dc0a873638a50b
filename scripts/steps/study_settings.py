"""Whether a study may go on: trials of other settings, or of other labels and images, cannot be compared.

A study that an earlier version began lacks the settings that are new since: they are taken for what that version did.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from configs.errors import InputError, listed
from configs.schema import RunConfig
from configs.tuning_plan import TuningPlan, ends

if TYPE_CHECKING:
    import optuna

# Settings of the study that may change while it runs.
NOT_COMPARED = {"config", "trials", "retries", "replicates", "keep", "heartbeat_seconds", "patience_seconds", "study"}
NOT_JUDGED = {
    "name", "out", "calibration", "threshold", "metrics", "submit", "report", "compute", "embed", "probe", "cluster"
}  # fmt: skip
DRAWS = "version of the draws of pseudo.draw like_labels"
FIRST_DRAWS = 2  # of studies that do not know theirs


def check_same_settings(study: "optuna.Study", plan: TuningPlan) -> None:
    """Note the settings of a new study; raises InputError, which lists the differences, for those of another."""
    now = {
        "config": plan.config().model_dump(mode="json", exclude=NOT_JUDGED),
        "study": plan.tuning.model_dump(mode="json", exclude=NOT_COMPARED),
    }
    draws = _draws(plan)
    if draws:
        now["study"][DRAWS] = draws
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", now)
        second = plan.tuning.objective.second
        study.set_metric_names(["out-of-fold AP", *([] if second == "none" else [second])])
        return
    if draws:
        before["study"].setdefault(DRAWS, FIRST_DRAWS)
    idle = _idle_sections(plan)
    before, now = ({**own, "config": _without(own["config"], idle)} for own in (_as_today(before), now))
    differences = list(_differences(before, now))
    if differences:
        raise InputError(
            f"{study.study_name}: this study was begun with other settings, and its trials cannot be compared with "
            f"these\n{listed(differences)}\nSet them back, or begin another study: set `name` or `out`"
        )


def check_same_rows(study: "optuna.Study", plan: TuningPlan, rows: str) -> None:
    """The same for the digest of what is learnt from: labels, images, groups and folds."""
    before = study.user_attrs.get("rows")
    if before is None:
        study.set_user_attr("rows", rows)
    elif before != rows:
        raise InputError(
            f"{study.study_name}: this study was begun with other labels, groups, folds or images than those that "
            f"{plan.config().data.source} gives now, and its trials cannot be compared with new ones; put the old ones "
            "back, or begin another study: set `name` or `out`"
        )


def _as_today(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study with those that its version did not know, and without those that judge nothing."""
    config = _without(settings["config"], NOT_JUDGED)
    # New settings are as before by default; but the pool was drawn evenly until it could be drawn otherwise.
    config["pseudo"] = {"draw": "natural", **config["pseudo"]}
    with suppress(ValidationError):  # of a setting that is gone: the differences name it
        config = RunConfig.model_validate(config).model_dump(mode="json", exclude=NOT_JUDGED)
    return {**settings, "config": config}


def _idle_sections(plan: TuningPlan) -> set[str]:
    """Sections of the config that no trial of the study reads, whatever its arm and its teachers are."""
    base = plan.config()
    configs = [base, *(plan.config(chosen) for chosen in ends(plan.tuning))]
    pools = {config.pool.arm: config.pool for config in configs}
    teachers = {config.pseudo.teacher for config in configs}
    starts = {config.pseudo.start for config in configs}
    trials = [  # an end sets one field
        base.model_copy(
            update={"pool": pool, "pseudo": base.pseudo.model_copy(update={"teacher": teacher, "start": start})}
        )
        for pool, teacher, start in product(pools.values(), teachers, starts)
    ]
    voices = [voice for config in configs for voice in config.pseudo.voices]
    read = {
        "pretrain": any(trial.pretrains for trial in trials),
        "semi": any(trial.semi_arms for trial in trials),
        "pseudo": any(trial.student_arms for trial in trials),
    }
    read["propagate"] = read["pseudo"] and any(voice.learner == "propagation" for voice in voices)
    return {section for section, is_read in read.items() if not is_read}


def _draws(plan: TuningPlan) -> int | None:
    """The version of the draws by which students see the pool, where trials have students that see it like labels."""
    base = plan.config()
    configs = [base, *(plan.config(chosen) for chosen in ends(plan.tuning))]  # an end sets one field
    if any(own.student_arms for own in configs) and any(own.pseudo.draw == "like_labels" for own in configs):
        from trainers.pool_batches import DRAWS_VERSION

        return DRAWS_VERSION
    return None


def _without(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _differences(before: Any, now: Any, at: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{at}.{key}" if at else key)
    elif before != now:
        yield f"{at.partition('.')[2]}: begun with {before}, now {now}"

"""What a trial of a study trains, in words: ways of using the pool multiply it. Nothing here imports torch."""

from configs.errors import counted
from configs.schema import RunConfig


def cost_of_pool(config: RunConfig) -> str | None:
    """How much more a trial trains with `pool.arm` than without; None without."""
    if config.pool.arm == "none":
        return None
    arms = _arms_of_a_trial(config)
    plain = len(config.models) * config.folds.num_folds
    words = (
        f"pool.arm: {config.pool.arm} trains {counted(len(arms) * plain, 'network')} for a trial ({', '.join(arms)}), "
        f"without the pool it is {plain}"
    )
    for some, section in ((config.semi_arms, config.semi), (config.student_arms, config.pseudo)):
        if own := [arm for arm in arms if arm in some]:
            words += (
                f"; those of {', '.join(own)} see {section.batch_size} images of the pool beside each labelled batch"
            )
    if any(config.starts_pretrained(arm) for arm in arms):
        backbones = counted(len(config.models), "backbone learns", "backbones learn")
        words += f"; {backbones} from the pool before, {config.pretrain.steps:,} steps each"
    if config.student_arms:
        words += "; such a trial cannot be given up between its folds"
    return f"{words}. Networks that no setting of a trial changes are trained once for all trials"


def _arms_of_a_trial(config: RunConfig) -> list[str]:
    """The arms whose networks a trial trains: the one that is judged, and those that it learns from."""
    if config.student_arms:
        inner = {config.teacher_of(arm) for arm in config.student_arms} if config.pseudo.inner_holdout else set()
        return [*config.arms, *(f"teacher-{arm}" for arm in sorted(inner))]
    judged = config.arms[-1]
    makes_clusters = judged in config.semi_arms and config.semi.background_classes
    return ["supervised", judged] if makes_clusters else [judged]

"""Settings that are right one by one and wrong together, because arms could not be compared or labels would leak."""

from collections.abc import Sequence

from configs.schema import RunConfig


def unfair_arms(config: RunConfig) -> list[str]:
    """Settings under which arms could not be compared, or labels would reach where they must not."""
    problems = []
    problems += [
        f"pretrain.fine_tune.{key}: arms are compared, so it is the same for all of them: set train.{key}"
        for key in ("keep", "steps", "batch_size")
        if key in config.pretrain.fine_tune
    ]
    kept_best = [model.name for model in config.models if config.train_for(model).keep == "best"]
    on_pool = [*config.semi_arms, *config.student_arms]
    if kept_best and (config.student_arms or (config.semi_arms and config.semi.background_classes)):
        problems.append(
            f"train.keep: best chooses the weights of {', '.join(kept_best)} by the labels of the held-out fold, which "
            f"must not reach the student of that fold; with pool.arm {config.pool.arm} set it to last"
        )
    if on_pool and (config.augment.mixup_alpha or config.augment.cutmix_alpha):
        problems.append(
            "augment.mixup_alpha and cutmix_alpha would mix labelled images with those of the pool, whose targets hold "
            f"at other class shares; with pool.arm {config.pool.arm} set both to 0"
        )
    if not all(config.train_for(model, arm=arm).ema_decay for arm in config.semi_arms for model in config.models):
        problems.append(
            f"train.ema_decay: the moving average is the teacher of arm {config.semi_arms[0]!r}; set it above 0, for "
            "instance to 0.995 (pretrain.fine_tune may set it, too)"
        )
    if config.student_arms:
        problems += _too_few_teachers(config)
    if config.pseudo.prevalence == "estimate" and not (config.pseudo.inner_holdout or config.pseudo.voices):
        judges = {config.teacher_of(arm) for arm in config.student_arms}
        problems += _bent_probabilities(
            config, sorted(judges), "pseudo", "; or set pseudo.inner_holdout, to calibrate, or pseudo.voices"
        )
    if config.semi.prevalence == "estimate":
        problems += _bent_probabilities(config, config.semi_arms, "semi", "")
    if config.student_arms and config.pseudo.inner_holdout and config.semi.background_classes:
        teachers = {config.teacher_of(arm) for arm in config.student_arms} & set(config.semi_arms)
        problems += [
            "semi.background_classes: the clusters come from networks that learnt the labels of the inner holdout, "
            f"which must not reach the teachers of arm {arm!r}; set it to 0, or pseudo.inner_holdout to 0"
            for arm in sorted(teachers)
        ]
    return problems


def _bent_probabilities(config: RunConfig, arms: Sequence[str], section: str, or_else: str) -> list[str]:
    """The problem that the scores of arms are no probabilities, which `prevalence: estimate` takes them for."""
    losses = [(model.name, config.train_for(model, arm=arm).loss) for arm in arms for model in config.models]
    bent = [
        name
        for name, loss in losses
        if loss.name in ("focal", "asymmetric") or loss.label_smoothing or loss.positive_target < 1
    ]
    if not bent:
        return []
    return [
        f"{section}.prevalence: estimate takes probabilities, which the loss of {', '.join(dict.fromkeys(bent))} "
        "bends; set train.loss.name to cross_entropy, without label_smoothing and with positive_target 1 (in "
        f"pretrain.fine_tune, too), or prevalence to labelled{or_else}"
    ]


def _too_few_teachers(config: RunConfig) -> list[str]:
    cross = config.pseudo.teachers == "cross"
    each = len(config.models) - cross + len(config.pseudo.voices)
    if not each:
        return [
            f"pseudo.teachers: cross lets the other models of a fold teach each student, and {config.models[0].name} "
            "is the only one; add a second one to models, or set it to joint"
        ]
    if config.pseudo.select == "agreement" and each < 2:
        one_more = "a third model for cross" if cross else "a second model"
        return [
            "pseudo.select: agreement needs two models that may disagree, and each student has one teacher; use "
            f"another selection, or {one_more}"
        ]
    return []

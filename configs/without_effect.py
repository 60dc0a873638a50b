"""Settings that change nothing beside what others are set to, found by what differs from the defaults.

Of a run, where what only `embed`, `probe`, `propagate` and `cluster` read is not looked at, or of one of the last two.
Nothing here imports torch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from configs.schema import RunConfig, TrainConfig

# Fields of `train` and the one choice that they belong to: key, the setting that chooses, what it must be.
TRAIN_CHOICES = (
    ("loss.gamma", "loss.name", "focal"),
    ("loss.gamma_negative", "loss.name", "asymmetric"),
    ("loss.gamma_positive", "loss.name", "asymmetric"),
    ("loss.clip", "loss.name", "asymmetric"),
    ("loss.tau", "loss.name", "logit_adjusted"),
    ("sampler.balance", "sampler.name", "balanced"),
    ("sampler.positives", "sampler.name", "positives_per_batch"),
    ("momentum", "optimizer", "sgd"),
)
# The same of other sections.
CHOICES = (
    *((f"pretrain.{method}", "pretrain.method", method) for method in ("contrastive", "vicreg", "masked", "distill")),
    ("pretrain.momentum", "pretrain.optimizer", "sgd"),
    ("pseudo.threshold", "pseudo.select", "threshold"),
    ("pseudo.quota", "pseudo.select", "quota"),
)


def settings_without_effect(config: RunConfig, section: str | None = None) -> list[str]:
    """A line for settings that were changed and do nothing, together where they would take the same: these, and that.

    They are those of a run, or of the command that reads `section`: cluster or propagate.

    >>> settings_without_effect(RunConfig(predict={"pool": False}, pool={"confidence": 0.8}))
    ['pool.confidence: 0.8 has no effect, it takes pool.arm: pretrained, semi, combined, pseudo or all']
    """
    defaults = _flat(RunConfig().model_dump(mode="json"))
    values = _flat(config.model_dump(mode="json"))
    for position, model in enumerate(config.models):  # what differs from `train` was written there
        values |= _flat(model.train, f"models.{position}.train")
    if section is None:
        idle = list(_idle(config, values))
    else:
        idle = [(f"{section}.{key}", takes) for key, takes in getattr(config, section).idle.items()]
    lacking: dict[str, list[str]] = {}  # by what they would take
    for key, value in values.items():
        if key in defaults and value == defaults[key]:
            continue
        needed = next((takes for prefix, takes in idle if key == prefix or key.startswith(f"{prefix}.")), None)
        if needed is not None:
            lacking.setdefault(needed, []).append(f"{key}: {value}")
    return [
        f"{', '.join(settings)} {'has' if len(settings) == 1 else 'have'} no effect, "
        f"{'it takes' if len(settings) == 1 else 'they take'} {needed}"
        for needed, settings in lacking.items()
    ]


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Values by their dotted path."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}.{key}" if above else key
        flat |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return flat


def _idle(config: RunConfig, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings and sections that do nothing, and what they would take."""
    if config.pool.arm == "none":
        yield "pool.confidence", "pool.arm: pretrained, semi, combined, pseudo or all"
    if config.threshold.rule != "recall":
        yield "guarantee.recall", "threshold.rule: recall"
    if not config.pretrains:
        yield "pretrain", "pool.arm: pretrained, combined or all (or pseudo with such a pseudo.teacher or pseudo.start)"
    if config.pseudo.teacher in ("pretrained", "combined"):  # whose students begin so in any case
        yield "pseudo.start", "pseudo.teacher: supervised or semi"
    if not config.semi_arms:
        yield "semi", "pool.arm: semi, combined or all (or pseudo with such a pseudo.teacher)"
    if not config.student_arms:
        yield "pseudo", "pool.arm: pseudo or all"
    yield from ((f"semi.{key}", takes) for key, takes in config.semi.idle.items())
    yield from ((key, f"{choice}: {wanted}") for key, choice, wanted in CHOICES if values[choice] != wanted)
    yield from _idle_in_training(config)
    if config.augment.policy == "none":
        yield "augment.strength", "augment.policy: light or heavy"
        if not config.pretrains:  # whose views are flipped and turned under any policy
            for key in ("horizontal_flip", "vertical_flip", "quarter_turns", "rotate_degrees"):
                yield f"augment.{key}", "augment.policy: light or heavy"
    if not (config.augment.mixup_alpha or config.augment.cutmix_alpha):
        yield "augment.mix_probability", "augment.mixup_alpha or augment.cutmix_alpha above 0"
    num_members = len(config.models) + len(config.ensemble.voices)
    if not config.ensemble.tune or num_members < 2:
        takes = "ensemble.tune: true" if num_members > 1 else "two models or more"
        yield from ((f"ensemble.{key}", takes) for key in ("trials", "seed"))
    for part in ("pool", "test"):
        if values[f"data.{part}"] is None:
            yield f"data.{part}_path_format", f"data.{part}"


def _idle_in_training(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The same of `train`, of what a model changes in it, and of what fine-tuning does."""
    trained = [(arm, model) for arm in config.arms for model in config.models]
    places = {"train": trained}
    for position, own in enumerate(config.models):
        places[f"models.{position}.train"] = [(arm, model) for arm, model in trained if model is own]
    places["pretrain.fine_tune"] = [(arm, model) for arm, model in trained if config.starts_pretrained(arm)]
    for place, networks in places.items():
        settings = [config.train_for(model, arm=arm) for arm, model in networks]
        for key, choice, wanted in TRAIN_CHOICES:
            if settings and not _is_chosen(settings, choice, wanted):
                yield f"{place}.{key}", f"train.{choice}: {wanted}"


def _is_chosen(settings: Sequence[TrainConfig], choice: str, wanted: str) -> bool:
    """Whether any of the trainings has the choice."""
    return any(_flat(own.model_dump())[choice] == wanted for own in settings)

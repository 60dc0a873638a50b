"""The sections of the config about training with the unlabelled pool. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Field

from configs.networks import Voices
from configs.sections import Count, Fraction, NonNegative, Section


class PoolConfig(Section):
    """What the unlabelled pool is used for in training; compared with the arm `supervised`, which does without."""

    arm: Literal["none", "pretrained", "semi", "combined", "pseudo", "all"] = Field(
        "none",
        description="pretrained = backbones learnt from the pool first; semi = labels and pool in one training; "
        "combined = semi that begins with those backbones; pseudo = students of what others say of the pool; "
        "all = each of them",
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = Field(
        0.9, description="how sure a gain must be for the arm to be kept"
    )


class PseudoConfig(Section):
    """Pseudo-labels: what the fold models of an arm say of the pool teaches the next ones, fold by fold."""

    teacher: Literal["supervised", "pretrained", "semi", "combined"] = Field(
        "supervised", description="arm that teaches in the first round"
    )
    start: Literal["teacher", "pretrained"] = Field(
        "teacher",
        description="what students begin with: teacher = what the networks of arm `teacher` began with; pretrained = "
        "backbones that learnt from the pool without labels (section pretrain), whoever teaches",
    )
    teachers: Literal["joint", "cross"] = Field(
        "joint",
        description="joint = all models of a fold teach each student; cross = all but its own (co-training)",
    )
    voices: Voices = Field(
        default=[],
        description="networks not trained here, as in embed.networks: what their features say of the labels speaks "
        "beside the teachers, with equal weight",
    )
    rounds: Count = Field(
        1,
        description="at most; students teach the next round, until two rounds have shown no gain over their teachers",
    )
    min_precision: Fraction = Field(
        0.5,
        description="a round is not trained when fewer of its positive pseudo-labels (several classes: of any class) "
        "are right by the estimate itself, not by its interval; nor where none can be judged and the teachers are not "
        "shown to rank better than chance; 0 = never",
    )
    select: Literal["soft", "threshold", "quota", "agreement"] = Field(
        "soft",
        description="soft = all images with their probabilities; threshold, quota = the most certain ones as if they "
        "were labels; agreement = those that all models put into the same class",
    )
    threshold: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95, description="threshold: probability that a class must have, at the pool's prevalence"
    )
    quota: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="quota: share of each class's estimated images that is taken, the most certain first"
    )
    prevalence: Literal["labelled", "estimate"] = Field(
        "labelled",
        description="class shares of the pool: those of the labels, or estimated by EM: from what the voices say, each "
        "left without a part of the labels in turn; without voices from the teachers' scores, which takes "
        "probabilities, so cross_entropy or logit_adjusted as train.loss.name, or an inner_holdout",
    )
    inner_holdout: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        0.0,
        description="share of the labels outside a fold that its teachers, then models of their own, leave out and are "
        "calibrated on; doubles the trainings of every arm that teaches; 0 = off",
    )
    batch_size: Count = Field(64, description="pool images per optimiser step, beside train.batch_size labelled ones")
    loss_weight: NonNegative = Field(1.0, description="of the pool's mean loss against that of the labels")
    draw: Literal["natural", "like_labels"] = Field(
        "like_labels",
        description="which pool images a step sees: like_labels = by their targets, so that classes are mixed as "
        "train.sampler mixes those of the labels; natural = all equally often",
    )

"""The typed, frozen configuration of a run: one model per stage, every field with a type, a default and its meaning.

Nothing here imports torch, so that a wrong key is an error before anything slow or any data is opened. Load a file with
`configs.load.load_config`; the sections are handed to the stages, never the whole.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from configs.clustering import ClusterConfig
from configs.ensembling import CalibrationConfig, EnsembleConfig
from configs.networks import EmbedConfig, FrozenNetworkConfig, NetworkConfig, ProbeConfig, VoiceConfig
from configs.pool import PoolConfig, PseudoConfig
from configs.pretraining import PretrainConfig
from configs.propagation import PropagateConfig
from configs.sections import (
    Count,
    Fraction,
    NonNegative,
    OpenFraction,
    OptimisationConfig,
    Positive,
    Section,
    merged,
    safe_name,
)
from configs.semi import SemiConfig
from configs.thresholds import ThresholdConfig

MAX_HOLDOUT = 0.5  # share of the labelled rows; the models need the rest
PILLOW_PIXELS = 178_956_970  # Pillow opens no image with more (twice its MAX_IMAGE_PIXELS)


class ColumnsConfig(Section):
    """What the columns of the user's table are called."""

    id: str = Field("id", description="text that names an image, unique")
    path: str = Field("path", description="image file, relative to data.root")
    label: str = Field("label", description="class of the image; empty = unlabelled")
    split: str = Field("split", description="train | pool | test; the column may be absent")
    group: str = Field("group", description="patient, lesion, ...: rows of one group stay together; may be absent")


class DataConfig(Section):
    """Images and how they become pixels; source, pool, test, truth and root are relative to the config file."""

    source: Path | None = Field(
        None, description="table (CSV, Parquet), folder of class folders, or folder of IDX files"
    )
    pool: Path | None = Field(None, description="more unlabelled images: a table or a folder")
    test: Path | None = Field(None, description="images to score: a table or a folder")
    truth: Path | None = Field(None, description="CSV with id,label of test or pool rows; only evaluation reads it")
    root: Path | None = Field(None, description="folder that image paths are relative to; default: the table's folder")
    columns: ColumnsConfig = ColumnsConfig()
    path_format: str | None = Field(
        None,
        description="image path made from a row's columns when there is no path column, e.g. train/{image_name}.jpg",
    )
    test_path_format: str | None = Field(None, description="the same for data.test; default: path_format")
    pool_path_format: str | None = Field(None, description="the same for data.pool; default: path_format")
    labels: list[str] | None = Field(None, description="the known classes; default: those found, sorted")
    positive_label: str | None = Field(None, description="the rare class to find (binary work)")
    image_size: Annotated[int, Field(ge=8, le=2048)] = Field(224, description="working size, pixels per side")
    channels: Literal[1, 3] = Field(3, description="1 = grey, 3 = RGB")
    resize: Literal["squash", "crop", "pad"] = Field(
        "squash", description="how a picture that is not square gets the working size"
    )
    grey_bits: Annotated[int, Field(ge=9, le=16)] = Field(
        16, description="bits really used by 16-bit grey files: 0 .. 2^bits - 1 is scaled to 0 .. 255, more is refused"
    )
    multi_frame: Literal["reject", "first"] = Field("reject", description="files with several frames or pages")
    max_pixels: Annotated[int, Field(ge=1, le=PILLOW_PIXELS)] = Field(
        90_000_000, description="an image with more pixels is rejected before it is decoded"
    )
    max_rejected: Fraction = Field(0.01, description="share of unreadable images above which preparing is an error")
    cache: bool = Field(True, description="keep decoded images in images/; false decodes on the fly")


class FoldsConfig(Section):
    """Cross-validation folds over the labelled rows."""

    num_folds: Annotated[int, Field(ge=2, le=50)] = Field(3, description="folds; each model is trained once per fold")
    keep_duplicates_together: bool = Field(
        False, description="near-duplicates (resized, re-encoded, cropped, mirrored copies) share a fold or the holdout"
    )


class GuaranteeConfig(Section):
    """The promise made for the threshold, and the labelled rows set apart to back it."""

    holdout: Annotated[float, Field(ge=0.0, le=MAX_HOLDOUT)] = Field(
        0.0, description="share of the labelled rows that no model, calibrator or weight sees"
    )
    recall: OpenFraction = Field(0.9, description="recall to promise at the threshold")
    confidence: OpenFraction = Field(0.95, description="probability that the promise holds")


class AugmentConfig(Section):
    """What varies a training image. Not every image may be flipped: digits and X-rays have a right way up."""

    policy: Literal["none", "light", "heavy"] = Field("heavy", description="how much training images are varied")
    strength: Annotated[float, Field(gt=0.0, le=2.0)] = Field(1.0, description="scales every magnitude of the policy")
    horizontal_flip: bool = Field(True, description="mirror left and right")
    vertical_flip: bool = Field(True, description="mirror top and bottom")
    quarter_turns: bool = Field(True, description="rotations by 90, 180 and 270 degrees")
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = Field(30.0, description="random rotation, +- degrees")
    mixup_alpha: NonNegative = Field(0.0, description="Beta(alpha, alpha) of mixup on batches; 0 = off")
    cutmix_alpha: NonNegative = Field(0.0, description="Beta(alpha, alpha) of cutmix on batches; 0 = off")
    mix_probability: Fraction = Field(0.5, description="share of the batches that are mixed, when mixing is on")

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """The fields that `augment.policies.build_policy` takes by keyword."""
        return self.model_dump(exclude={"policy", "mixup_alpha", "cutmix_alpha", "mix_probability"})


class LossConfig(Section):
    """The training loss; binary work uses its sigmoid form, multi-class its softmax form."""

    name: Literal["cross_entropy", "focal", "logit_adjusted", "asymmetric"] = Field(
        "focal", description="focal looks away from what is easy"
    )
    gamma: NonNegative = Field(2.0, description="focal: exponent of (1 - p)")
    gamma_negative: NonNegative = Field(4.0, description="asymmetric: exponent for the negatives")
    gamma_positive: NonNegative = Field(1.0, description="asymmetric: exponent for the positives")
    clip: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.05, description="asymmetric: probability shift of negatives"
    )
    tau: NonNegative = Field(1.0, description="logit_adjusted: weight of the log prior")
    class_weight: Literal["none", "inverse", "sqrt_inverse"] = Field(
        "none", description="weights by class frequency, on top of the sampler"
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        0.0, description="share of each target spread evenly over the classes"
    )
    positive_target: Annotated[float, Field(gt=0.5, le=1.0)] = Field(
        1.0, description="target given to a positive (binary): 0.8 to 0.9 softens rare, doubtful positives"
    )


class SamplerConfig(Section):
    """Which rows make a batch."""

    name: Literal["natural", "balanced", "positives_per_batch"] = Field(
        "balanced", description="class frequencies in the batches"
    )
    balance: Fraction = Field(1.0, description="balanced: 0 = natural frequencies, 1 = every class equally often")
    positives: Count = Field(8, description="positives_per_batch: positives in every batch (binary)")


class TrainConfig(OptimisationConfig):
    """Supervised training of one model on one fold. Durations are in optimiser steps."""

    section: ClassVar[str] = "train"

    loss: LossConfig = LossConfig()
    sampler: SamplerConfig = SamplerConfig()
    keep: Literal["last", "best"] = Field(
        "last", description="best picks the checkpoint on the held-out fold, which makes its score optimistic"
    )
    eval_every_steps: Annotated[int, Field(ge=0)] = Field(0, description="metrics on the held-out fold; 0 = steps / 10")

    @model_validator(mode="after")
    def _room_for_negatives(self) -> "TrainConfig":
        if self.sampler.name == "positives_per_batch" and self.sampler.positives >= self.batch_size:
            raise ValueError(
                f"sampler.positives ({self.sampler.positives}) must be less than batch_size ({self.batch_size})"
            )
        return self

    @property
    def eval_steps(self) -> int:
        """Steps between looks at the held-out fold."""
        return self.eval_every_steps or max(1, self.steps // 10)


class ModelConfig(NetworkConfig):
    """One of the networks of the ensemble."""

    train: dict[str, Any] = Field(default_factory=dict, description="fields of `train` that differ for this model")


class ViewConfig(Section):
    """One test-time view and its weight."""

    view: Literal["identity", "horizontal_flip", "vertical_flip", "rotate90", "rotate180", "rotate270"] = "identity"
    weight: Positive = 1.0


class PredictConfig(Section):
    """How trained models score images."""

    views: list[ViewConfig] = Field(
        default=[ViewConfig()], min_length=1, description="test-time views; logits averaged"
    )
    batch_size: Count = Field(256, description="images per forward pass when scoring")
    pool: bool = Field(True, description="score the pool too")


class MetricsConfig(Section):
    """Points and intervals of the reported metrics."""

    precision_points: list[OpenFraction] = Field(default=[0.5, 0.9], description="recall is reported at these")
    recall_points: list[OpenFraction] = Field(default=[0.8, 0.9, 0.95], description="precision is reported at these")
    top_k: list[Count] = Field(default=[50, 100, 500], description="recall among the k highest scores")
    min_tpr: OpenFraction = Field(0.8, description="partial ROC area above this true positive rate")
    replicates: Annotated[int, Field(ge=200)] = Field(2000, description="bootstrap replicates")
    confidence: OpenFraction = Field(0.95, description="of the intervals")


class SubmitConfig(Section):
    """The submission file."""

    sample: Path | None = Field(
        None, description="sample_submission.csv, relative to the config file: gives columns, ids and order"
    )
    id_column: str = Field("id", description="without a sample")
    target_column: str = Field("target", description="without a sample; multi-class uses one column a class")
    unreadable: Literal["error", "lowest"] = Field("error", description="test images that could not be read")


class ReportConfig(Section):
    """The HTML report."""

    title: str | None = Field(None, description="heading; default: the run and the class it finds")
    num_thumbnails: Annotated[int, Field(ge=0, le=200)] = Field(24, description="images in each gallery")


class ComputeConfig(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU if there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    num_devices: Count | None = Field(None, description="processes that train a fold together; null: all GPUs, one CPU")
    side_by_side: Count | None = Field(
        None, description="fold models trained at a time; null: on a CPU one per core and at most 4, on a GPU 1"
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="loader processes; null: 1 on a CPU, none with a single thread, up to 8 on a GPU"
    )
    decode_threads: Count | None = Field(None, description="threads that decode images in prepare; null: all cores")


class RunConfig(Section):
    """Everything a run needs."""

    name: str = Field("run", description="the run's folder below `out`")
    out: Path = Field(Path("runs"), description="where run folders go, relative to where you are")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of folds, weights, batches and augmentation")
    data: DataConfig = DataConfig()
    folds: FoldsConfig = FoldsConfig()
    guarantee: GuaranteeConfig = GuaranteeConfig()
    augment: AugmentConfig = AugmentConfig()
    models: list[ModelConfig] = Field(
        default=[ModelConfig(backbone="resnet18"), ModelConfig(backbone="efficientnet_b0")],
        min_length=1,
        description="the networks of the ensemble, usually two different ones",
    )
    pool: PoolConfig = PoolConfig()
    pretrain: PretrainConfig = PretrainConfig()
    semi: SemiConfig = SemiConfig()
    pseudo: PseudoConfig = PseudoConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    probe: ProbeConfig = ProbeConfig()
    propagate: PropagateConfig = PropagateConfig()
    cluster: ClusterConfig = ClusterConfig()
    predict: PredictConfig = PredictConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    threshold: ThresholdConfig = ThresholdConfig()
    metrics: MetricsConfig = MetricsConfig()
    submit: SubmitConfig = SubmitConfig()
    report: ReportConfig = ReportConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("name")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_name(value)

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        repeated = [name for name, count in Counter(model.name for model in self.models).items() if count > 1]
        if repeated:
            raise ValueError(f"models: two models are called {repeated[0]!r}; give each its own `name`")
        for key, voices in (("pseudo.voices", self.pseudo.voices), ("ensemble.voices", self.ensemble.voices)):
            shared = {model.name for model in self.models} & {voice.name for voice in voices}
            if shared:
                raise ValueError(f"{key}: a model is called {min(shared)!r}, too; give the voice its own `name`")
        # features are stored by name
        taken: dict[str, tuple[str, FrozenNetworkConfig]] = {}
        if self.distilled is not None:
            taken[self.distilled.name] = ("that is distilled (pretrain.distill.teacher)", self.distilled)
        if self.student_arms:
            self._other_features("pseudo.voices", self.pseudo.voices, taken)
            taken |= {voice.name: ("of pseudo.voices", voice) for voice in self.pseudo.voices}
        self._other_features("ensemble.voices", self.ensemble.voices, taken)
        return self

    @staticmethod
    def _other_features(
        key: str, voices: Sequence[VoiceConfig], taken: Mapping[str, tuple[str, FrozenNetworkConfig]]
    ) -> None:
        """Raise ValueError for a voice with the name of a network that gives other features."""
        for voice in voices:
            which, network = taken.get(voice.name, ("", voice))
            if voice.features != network.features:
                raise ValueError(
                    f"{key}: the network {which} is called {voice.name!r}, too, and gives other features; give the "
                    "voice its own `name`"
                )

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.out / self.name

    @property
    def teacher_arms(self) -> list[str]:
        """The arms that are trained on labels alone, `supervised` first."""
        return ["supervised", *(["pretrained"] if self._trains("pretrained") else [])]

    @property
    def semi_arms(self) -> list[str]:
        """The arms that are trained on labels and pool in one training, each network its own teacher."""
        return [arm for arm in ("semi", "combined") if self._trains(arm)]

    @property
    def student_arms(self) -> list[str]:
        """The arms that are to learn from what a teacher says of the pool, too, one a round; rounds may stop early."""
        rounds = range(1, self.pseudo.rounds + 1) if self.pool.arm in ("pseudo", "all") else ()
        return [f"pseudo-{number}" for number in rounds]

    def teacher_of(self, arm: str) -> str:
        """The arm whose models teach a student arm: `pseudo.teacher` in the first round, then the round before."""
        number = self.student_arms.index(arm)
        return self.student_arms[number - 1] if number else self.pseudo.teacher

    @property
    def teaching_arms(self) -> list[str]:
        """The arms whose models teach a student arm."""
        return [self.teacher_of(arm) for arm in self.student_arms]

    def scores_pool(self, arm: str) -> bool:
        """Whether an arm's models score the pool: as set, and in any case when they teach from it.

        With an inner holdout other networks teach, which leave it out.
        """
        return self.predict.pool or (arm in self.teaching_arms and not self.pseudo.inner_holdout)

    @property
    def arms(self) -> list[str]:
        """The ways of using the pool that are to be trained, `supervised` first."""
        return [*self.teacher_arms, *self.semi_arms, *self.student_arms]

    def _trains(self, arm: str) -> bool:
        """Whether an arm is asked for, or teaches one that is."""
        return self.pool.arm in (arm, "all") or (self.pool.arm == "pseudo" and self.pseudo.teacher == arm)

    def starts_pretrained(self, arm: str) -> bool:
        """Whether the networks of an arm begin as backbones that were learnt from the pool."""
        begun = arm
        if arm in self.student_arms:
            begun = self.pseudo.teacher if self.pseudo.start == "teacher" else "pretrained"
        return begun in ("pretrained", "combined")

    @property
    def pretrains(self) -> bool:
        """Whether backbones have to be learnt from the pool."""
        return any(self.starts_pretrained(arm) for arm in self.arms)

    @property
    def distilled(self) -> FrozenNetworkConfig | None:
        """The frozen network that backbones learn to match, if any do."""
        return self.pretrain.distill.teacher if self.pretrains and self.pretrain.method == "distill" else None

    def train_for(self, model: ModelConfig, *, arm: str = "supervised") -> TrainConfig:
        """The `train` section with the fields that this model overrides, and those that fine-tuning does.

        Raises pydantic's ValidationError for an unknown or wrong field in `models[].train` or `pretrain.fine_tune`.
        """
        settings = merged(self.train.model_dump(), model.train)
        if self.starts_pretrained(arm):
            settings = merged(settings, self.pretrain.fine_tune)
        return TrainConfig.model_validate(settings)

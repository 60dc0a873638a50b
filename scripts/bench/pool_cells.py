"""The cells of a study of the pool: their configs, all checked before the first is trained, and how one is done.

OUT/<scenario>-seed<s>/
  data/            the benchmark, drawn from the seed
  supervised/      an ordinary run, as are those of the methods and the oracle
  <method>/        begins with the networks of supervised/, which are adopted and not trained again
  rivals/          features of these networks, and what scikit-learn makes of them
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError, listed
from configs.pool_study import ORACLE, SUPERVISED, PoolStudyConfig
from configs.study import run_name
from scripts.bench.benchmark_data import ORACLE_TABLE, TABLE, TEST, TEST_TRUTH, write_benchmark
from scripts.bench.pool_figures import Cell, arm_figures
from scripts.bench.timed import timed_run
from scripts.steps.embed import as_teacher

if TYPE_CHECKING:
    from configs.networks import FrozenNetworkConfig
    from configs.schema import RunConfig
    from trainers.fashion import LongTail, RareFashion

BACKBONES = ("pretrain/", "train/pretrained/")  # stages of what is learnt without labels, and of what comes of it
# What decides the networks of the arm `supervised` and their scores, and so must be the same in all methods.
SHARED = ("data", "folds", "guarantee", "augment", "models", "train")


@dataclass(frozen=True)
class Plan:
    """A study as it was asked for: its file, where it works, the overrides of the command line."""

    study: PoolStudyConfig
    path: Path
    out: Path
    given: tuple[str, ...] = ()
    idx: Path | None = None
    restart: bool = False

    def folder(self, scenario: str, seed: int) -> Path:
        """Where everything of a scenario and seed is."""
        return self.out / f"{run_name(scenario)}-seed{seed}"

    def benchmark(self, scenario: str, seed: int) -> "RareFashion | LongTail":
        """What the data are drawn with; raises InputError for options that the benchmark does not have."""
        from pydantic import TypeAdapter, ValidationError

        from trainers.fashion import LongTail, RareFashion

        settings = self.study.scenarios[scenario]
        kind: type[RareFashion | LongTail] = RareFashion if settings.benchmark == "rare-fashion" else LongTail
        known = sorted(set(kind.__dataclass_fields__) - {"seed"})
        problems = [f"{key}: not an option; there are {', '.join(known)}" for key in settings.data if key not in known]
        try:
            found = TypeAdapter(kind).validate_python({**settings.data, "seed": seed})
        except ValidationError as error:
            problems += [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        if problems:
            raise InputError(f"{self.path}: data of scenario {scenario!r} ({settings.benchmark})\n{listed(problems)}")
        return found

    def config(self, scenario: str, seed: int, method: str) -> "RunConfig":
        """The config of a run; that of a rival is the supervised one, whose networks it stands on."""
        from configs.load import load_config

        method = SUPERVISED if method in self.study.rivals else method
        folder = self.folder(scenario, seed)
        overrides = [
            *self.study.overrides(scenario, method, self.given),
            f"data.source={folder / 'data' / (ORACLE_TABLE if method == ORACLE else TABLE)}",
            f"data.test={folder / 'data' / TEST}", "data.truth=null",
            f"out={folder}", f"name={run_name(method)}", f"seed={seed}",
        ]  # fmt: skip
        return load_config(self.path.parent / self.study.scenarios[scenario].preset, overrides)

    def check(self, scenario: str, seed: int, method: str) -> None:
        """Raise InputError when a cell cannot be compared with the supervised one, or its config is wrong."""
        self.benchmark(scenario, seed)
        config = self.config(scenario, seed, method)
        if method not in self.study.methods:
            return
        if config.pool.arm == "none" and not config.ensemble.voices:
            raise InputError(f"{self.path}: method {method!r} does not use the pool; set pool.arm, or ensemble.voices")
        first = self.config(scenario, seed, SUPERVISED)
        own, shared = (_deciding(each) for each in (config, first))
        differing = [
            f"{key}: supervised {shared[key]}, {method} {own[key]}" for key in shared if own[key] != shared[key]
        ]
        if differing:
            raise InputError(
                f"{self.path}: method {method!r} would not share the networks of {SUPERVISED!r}; set in `common` what "
                f"is to change in all methods\n{listed(differing)}"
            )


def run_cell(plan: Plan, scenario: str, seed: int, method: str, *, look: bool) -> Cell:
    """Bring one cell up to date; `look` adds figures of the test rows. Raises InputError when it cannot be done.

    The cell of `supervised` must be up to date before those of methods and rivals.
    """
    folder = plan.folder(scenario, seed)
    write_benchmark(folder / "data", plan.benchmark(scenario, seed), idx=plan.idx)
    truth = folder / "data" / TEST_TRUTH if look else None
    config = plan.config(scenario, seed, method)
    if method in plan.study.rivals:
        return _rival(plan, config, scenario, seed, method, truth)
    if method in plan.study.methods:
        share_trainings(plan.config(scenario, seed, SUPERVISED).run_dir, config.run_dir)
        share_between_methods(plan, config, scenario, seed)
    metrics = timed_run(config, restart=plan.restart)
    trained = [name for name in config.arms if name in metrics["pool"]["arms"]]
    # The last, which stands on the others; rounds of pseudo-labels may have stopped before what was to be trained.
    arm = trained[-1]
    gate: dict[str, Any] = {}
    kept = metrics["ensemble"]["arm"]
    figures = arm_figures(config.run_dir, tuple(trained), truth)
    if method in plan.study.methods and config.pool.arm != "none":
        oof, test = figures[kept]
        best = max((own for _, own in figures.values() if own is not None), key=lambda own: own.ap, default=None)
        gate = {"kept": kept, "kept_oof": oof, "kept_test": test, "best_test": best}
        if arm != config.arms[-1]:
            gate["note"] = f"{config.arms[-1]} was not trained, because its pseudo-labels were not good enough: {arm}"
    oof, test = figures[arm]
    return Cell(scenario, seed, method, oof=oof, test=test, minutes=metrics["wall_seconds"] / 60, **gate)


def share_trainings(supervised: Path, run_dir: Path) -> None:
    """Give a run the finished supervised trainings of another one, as hard links; raises InputError while either works.

    Its own scores stay, because a method may need those of other rows; the pipeline tells whether they are right.
    """
    from trainers.run_lock import locked
    from trainers.stages import adopt

    with locked(supervised), locked(run_dir):
        adopt(run_dir, supervised, lambda name: name.startswith(("prepare", f"train/{SUPERVISED}/")), replace=True)
        adopt(run_dir, supervised, lambda name: name.startswith(f"predict/{SUPERVISED}/"), replace=False)


def share_between_methods(plan: Plan, config: "RunConfig", scenario: str, seed: int) -> None:
    """Give a run the features that other methods of this cell have, and backbones that they have learnt in its way.

    With this come the networks of arm `pretrained`, and all networks where the methods differ by what is blended with
    them alone; what differs all the same, the pipeline makes anew.
    """
    from trainers.run_lock import locked
    from trainers.stages import adopt

    for method in plan.study.methods:
        other = plan.config(scenario, seed, method)
        if other.run_dir == config.run_dir or not (other.run_dir / ".stages").exists():
            continue
        alike = other.pretrain == config.pretrain and other.pretrains and config.pretrains
        wanted = _same_features(config, other) + (BACKBONES if alike else ())
        if _same_networks(config, other):
            wanted += ("train/", "predict/", "pseudo-")
        if wanted:
            with locked(other.run_dir), locked(config.run_dir):
                adopt(config.run_dir, other.run_dir, _beginning(wanted), replace=False)


def _same_features(config: "RunConfig", other: "RunConfig") -> tuple[str, ...]:
    """The stages in which two runs describe the images by the same frozen networks under the same names."""
    own, others = _frozen(config), _frozen(other)
    same = [name for name in own if name in others and own[name].features == others[name].features]
    return tuple(f"embed/{as_teacher(own[name]).name}" for name in same)


def _same_networks(config: "RunConfig", other: "RunConfig") -> bool:
    """Whether two runs differ by the voices of their ensembles alone."""
    first, second = (each.model_dump(exclude={"name": True, "ensemble": {"voices"}}) for each in (config, other))
    return first == second


def _frozen(config: "RunConfig") -> "dict[str, FrozenNetworkConfig]":
    """Voices, of teachers and of the ensemble, and the network that is distilled, by their names."""
    distilled = [] if config.distilled is None else [config.distilled]
    return {network.name: network for network in (*config.pseudo.voices, *config.ensemble.voices, *distilled)}


def _beginning(prefixes: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefixes)


def _rival(plan: Plan, config: "RunConfig", scenario: str, seed: int, name: str, truth: Path | None) -> Cell:
    from scripts.bench import embedding_rivals

    result = embedding_rivals.run(
        plan.study.rivals[name],
        config,
        name=name,
        out=plan.folder(scenario, seed) / "rivals",
        truth=truth,
        restart=plan.restart,
    )
    note = f"{result.setting} of {result.num_settings} settings"
    if result.not_converged:
        note += f" ({result.not_converged} learners did not converge)"
    return Cell(scenario, seed, name, oof=result.oof, test=result.test, minutes=result.seconds / 60, note=note)


def _deciding(config: "RunConfig") -> dict[str, Any]:
    """The settings in SHARED, and the views that scores are averaged over, by their dotted keys."""
    settings = config.model_dump(mode="json", include=set(SHARED))
    flat = {
        f"{section}.{key}": value
        for section in SHARED
        if section != "models"
        for key, value in settings[section].items()
    }
    views = [view.model_dump() for view in config.predict.views]
    return {**flat, "models": settings["models"], "predict.views": views}

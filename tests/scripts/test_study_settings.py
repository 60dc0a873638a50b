from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from configs.errors import InputError
from configs.load import load_config
from configs.tuning_plan import load_plan
from ensembles.studies.storage import quiet
from scripts.steps.study_settings import check_same_settings

LR = {"train.lr": {"low": 1e-3, "high": 1e-2}}
NEW_OF_NETWORKS = ("grid", "stages")
VOICE = {"backbone": "test_vit", "learner": "propagation"}


class Studies:
    """Studies of one config, begun with some settings and gone on with others; nothing is trained."""

    def __init__(self, folder: Path) -> None:
        quiet()
        self.folder = folder
        (folder / "config.yaml").write_text(yaml.safe_dump({"models": [{"backbone": "test_resnet"}]}))

    def begin(self, *given: str, space: dict[str, Any] = LR) -> None:
        self.study = optuna.create_study()
        self.go_on(*given, space=space)

    def go_on(self, *given: str, space: dict[str, Any] = LR) -> None:
        (self.folder / "space.yaml").write_text(yaml.safe_dump({"space": space}))
        check_same_settings(self.study, load_plan(self.folder / "config.yaml", self.folder / "space.yaml", given))

    def forget(self, *keys: str) -> None:
        """As of a version that did not know these settings of the config."""
        settings = self.study.user_attrs["settings"]
        for key in keys:
            *above, last = key.split(".")
            own: Any = settings["config"]
            for part in above:
                own = own[int(part)] if part.isdecimal() else own[part]
            del own[last]
        self.study.set_user_attr("settings", settings)


@pytest.fixture
def studies(tmp_path: Path) -> Studies:
    return Studies(tmp_path)


def test_a_study_of_a_version_that_knew_fewer_settings_goes_on(studies: Studies) -> None:
    given = ("pool.arm=pseudo", "pseudo.teacher=pretrained", "pseudo.draw=natural", f"pseudo.voices=[{VOICE}]")
    studies.begin(*given)
    studies.forget(
        "pseudo.draw",
        "propagate",
        *(f"pretrain.distill.teacher.{key}" for key in (*NEW_OF_NETWORKS, "name")),
        *(f"pseudo.voices.0.{key}" for key in NEW_OF_NETWORKS),
    )
    studies.go_on(*given)
    with pytest.raises(InputError, match=r"\n  - pretrain.steps: begun with 5000, now 7\nSet"):  # the control
        studies.go_on(*given, "pretrain.steps=7")


def test_an_earlier_version_drew_the_pool_evenly_which_can_be_set_back(studies: Studies) -> None:
    studies.begin("pool.arm=pseudo", "pseudo.draw=natural")
    studies.forget("pseudo.draw")
    with pytest.raises(InputError, match=r"pseudo.draw: begun with natural, now like_labels"):
        studies.go_on("pool.arm=pseudo")
    studies.go_on("pool.arm=pseudo", "pseudo.draw=natural")


@pytest.mark.parametrize(
    ("changed", "read_by"),
    [
        ("pseudo.rounds=2", ["pool.arm=pseudo"]),
        ("pretrain.steps=7", ["pool.arm=pretrained"]),
        ("semi.momentum=0.9", ["pool.arm=pseudo", "pseudo.teacher=semi"]),
        ("propagate.alpha=0.7", ["pool.arm=pseudo", f"pseudo.voices=[{VOICE}]"]),
        ("cluster.restarts=3", None),
    ],
)
def test_what_no_trial_reads_is_not_compared(studies: Studies, changed: str, read_by: list[str] | None) -> None:
    key, _, value = changed.partition("=")
    assert str(load_config(None, [changed]).model_dump()[key.split(".")[0]][key.split(".")[1]]) == value
    studies.begin()
    studies.go_on(changed)
    if read_by is not None:
        studies.begin(*read_by)
        with pytest.raises(InputError, match=key):
            studies.go_on(*read_by, changed)


def test_what_a_searched_arm_or_teacher_reads_is_compared(studies: Studies) -> None:
    """No end of the space by itself has students of pretrained teachers."""
    choices = {"pool.arm": ["none", "pseudo"], "pseudo.teacher": ["supervised", "pretrained"]}
    space = {key: {"choices": own} for key, own in choices.items()}
    studies.begin(space=space)
    with pytest.raises(InputError, match=r"pretrain.steps"):
        studies.go_on("pretrain.steps=7", space=space)
    studies.go_on("semi.momentum=0.9", space=space)
    # The last end leaves students to begin as their teachers did.
    space = {"pseudo.start": {"choices": ["pretrained", "teacher"]}, "train.lr": {"low": 0.001, "high": 0.003}}
    studies.begin("pool.arm=pseudo", space=space)
    with pytest.raises(InputError, match=r"pretrain.steps"):
        studies.go_on("pool.arm=pseudo", "pretrain.steps=7", space=space)


def test_students_that_see_the_pool_by_other_draws_are_not_compared(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = ("pool.arm=pseudo", "pseudo.draw=like_labels")
    for given in (("pool.arm=none",), ("pool.arm=pseudo", "pseudo.draw=natural")):
        studies.begin(*given)
        with monkeypatch.context() as later:
            later.setattr("trainers.pool_batches.DRAWS_VERSION", 9)
            studies.go_on(*given)  # which draw nothing like labels
    studies.begin(*students)
    studies.go_on(*students)
    with monkeypatch.context() as later:
        later.setattr("trainers.pool_batches.DRAWS_VERSION", 9)
        with pytest.raises(InputError, match=r"version of the draws of pseudo.draw like_labels: begun with 3, now 9"):
            studies.go_on(*students)
    searched = {"pool.arm": {"choices": ["none", "pseudo"]}, "pseudo.draw": {"choices": ["natural", "like_labels"]}}
    evenly = {"models": [{"backbone": "test_resnet"}], "pseudo": {"draw": "natural"}}
    (studies.folder / "config.yaml").write_text(yaml.safe_dump(evenly))
    studies.begin(space=searched)  # no end of one field has students that see the pool like labels
    with monkeypatch.context() as later:
        later.setattr("trainers.pool_batches.DRAWS_VERSION", 9)
        with pytest.raises(InputError, match=r"like_labels: begun with 3, now 9"):
            studies.go_on(space=searched)
    studies.begin(*students)
    settings = studies.study.user_attrs["settings"]
    del settings["study"]["version of the draws of pseudo.draw like_labels"]  # begun by an earlier version
    studies.study.set_user_attr("settings", settings)
    with pytest.raises(InputError, match=r"like_labels: begun with 2, now 3"):
        studies.go_on(*students)

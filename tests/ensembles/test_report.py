"""The report is made from run folders that the real writers wrote, with made-up scores."""

import json
import re
import shutil
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_image

from configs.load import check_config, dump_config
from configs.schema import MetricsConfig, ReportConfig, RunConfig
from ensembles import ensemble, evaluation, report, report_sections, wording
from ensembles.predictions import write_predictions
from trainers.atomic import write_csv, write_text
from trainers.table import ImageTable, read_table, write_table

METRICS = MetricsConfig(replicates=200)
MODELS = ("resnet18", "efficientnet_b0")
FINISHED = "2026-11-21T21:40:00.000+00:00"


@dataclass
class Sizes:
    """Images by split; `positives` of them (binary) in train, holdout and test."""

    train: int = 120
    holdout: int = 0
    pool: int = 30
    test: int = 40
    positives: int = 18


def write_run(
    folder: Path,
    *,
    sizes: Sizes | None = None,
    classes: tuple[str, ...] = ("0", "1"),
    binary: bool = True,
    ids: dict[int, str] | None = None,
    num_folds: int = 3,
    positives_in_folds: tuple[int, ...] | None = None,
    keep: str = "last",
    truth: bool = True,
    curves: bool = False,
    groups: bool = False,
    skill: float = 2.0,
    name: str = "run",
    seed: int = 0,
) -> RunConfig:
    """A run folder as the pipeline leaves it before the report; `truth` also writes truth.csv for the caller."""
    sizes = sizes or Sizes()
    rng = np.random.default_rng(seed)
    config = check_config(
        {
            "name": name,
            "out": str(folder.parent),
            "seed": seed,
            "folds": {"num_folds": num_folds},
            "models": [{"backbone": model} for model in MODELS],
            "train": {"keep": keep},
            "metrics": METRICS.model_dump(),
        },
        "the test",
    )
    table, truth_targets = _table(rng, sizes, classes, binary, num_folds, positives_in_folds, groups, ids or {})
    write_table(folder / "table.parquet", table)
    write_text(folder / "config.yaml", dump_config(config))
    rejected = [{"id": "torn", "path": "torn.jpg", "row": 7, "reason": "the file is cut", "split": "train"}]
    write_csv(folder / "rejected.csv", pd.DataFrame(rejected))
    for model in MODELS:
        for fold in range(num_folds):
            _predict(folder, table, truth_targets, model=model, fold=fold, skill=skill, rng=rng)
            if curves and model == MODELS[0]:
                _curve(folder / f"train/supervised/{model}/fold{fold}/curves.csv", rng)
    ensemble.run(
        predictions=folder / "predictions",
        table=table,
        arm="supervised",
        config=config.ensemble,
        guarantee=config.guarantee,
        out=folder / "ensemble",
    )
    known = None
    if truth and sizes.test:
        test = table.rows("test")
        known = pd.DataFrame(
            {"id": table.frame["id"].iloc[test], "label": [table.classes[target] for target in truth_targets[test]]}
        )
        write_csv(folder.parent / "truth.csv", known)
    evaluation.run(
        predictions=folder / "predictions",
        ensemble=folder / "ensemble",
        table=table,
        metrics=METRICS,
        truth=known,
        timing={"prepare": 1.5, "train": 75.0},
        pool={"used": False, "gain": None, "gain_ci": None, "reason": "only one arm", "arms": ["supervised"]},
        seed=seed,
        out=folder,
        optimistic=MODELS if keep == "best" else (),
    )
    events = [
        {"time": FINISHED, "event": "started", "stage": "prepare"},
        {"time": FINISHED, "event": "finished", "stage": "prepare", "seconds": 1.5, "summary": "190 images"},
        {"time": FINISHED, "event": "warning", "stage": "prepare", "message": "two images are the same"},
    ]
    write_text(folder / "log.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    return config


def _table(
    rng: np.random.Generator,
    sizes: Sizes,
    classes: tuple[str, ...],
    binary: bool,
    num_folds: int,
    positives_in_folds: tuple[int, ...] | None,
    groups: bool,
    ids: dict[int, str],
) -> tuple[ImageTable, np.ndarray]:
    splits = np.repeat(
        ["train", "holdout", "pool", "test"], [sizes.train, sizes.holdout, sizes.pool, sizes.test]
    ).astype(object)
    num = len(splits)
    share = sizes.positives / max(1, sizes.train)
    targets = rng.choice(len(classes), size=num) if not binary else (rng.random(num) < share).astype(int)
    train = np.flatnonzero(splits == "train")
    folds = np.full(num, -1)
    folds[train] = np.arange(len(train)) % num_folds
    if binary:
        counts = positives_in_folds or [len(part) for part in np.array_split(np.arange(sizes.positives), num_folds)]
        targets[train] = 0
        for fold, count in enumerate(counts):
            targets[train[folds[train] == fold][:count]] = 1
    known = np.isin(splits, ["train", "holdout"])
    frame = pd.DataFrame(
        {
            "id": [ids.get(row, f"img-{row:04d}") for row in range(num)],
            "path": [f"images/{row:04d}.png" for row in range(num)],
            "label": [classes[target] if has else None for target, has in zip(targets, known, strict=True)],
            "split": splits,
            "group": [f"patient {row // 2}" if groups else None for row in range(num)],
            "fold": pd.array([None if fold < 0 else int(fold) for fold in folds], dtype="Int64"),
            "sha256": [f"{row:064x}" for row in range(num)],
            "width": 28,
            "height": 28,
        }
    )
    return ImageTable(frame, list(classes), classes[1] if binary else None), targets


def _predict(
    folder: Path,
    table: ImageTable,
    targets: np.ndarray,
    *,
    model: str,
    fold: int,
    skill: float,
    rng: np.random.Generator,
) -> None:
    rows = np.concatenate(
        [table.rows("train", fold=fold), table.rows("holdout"), table.rows("pool"), table.rows("test")]
    )
    noise = rng.normal(size=(len(rows), table.num_outputs))
    if table.is_binary:
        logits = noise[:, 0] + skill * targets[rows] - 2.5
    else:
        logits = noise + skill * np.eye(table.num_outputs)[targets[rows]]
    write_predictions(
        folder / f"predictions/supervised/{model}/fold{fold}.parquet",
        table=table,
        rows=rows,
        logits=logits,
        arm="supervised",
        model=model,
        fold=fold,
    )


def _curve(path: Path, rng: np.random.Generator) -> None:
    steps = np.arange(20, 401, 20)
    loss = 0.7 * np.exp(-steps / 150) + rng.normal(0, 0.02, len(steps)) + 0.05
    watched = steps % 100 == 0
    ap = np.where(watched, 0.6 - 0.5 * np.exp(-steps / 120) + rng.normal(0, 0.02, len(steps)), np.nan)
    frame = pd.DataFrame({"step": steps, "loss": loss, "lr": 1e-3, "seconds": steps * 0.05, "ap": ap})
    write_csv(path, frame)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that tests read; those that change it take `changed_run`."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    write_run(folder, curves=True)
    return folder


@pytest.fixture(scope="module")
def plain_page(plain_run: Path) -> str:
    """The report of the plain run, with everything there is."""
    return make_report(plain_run, truth=read_truth(plain_run))


@pytest.fixture
def changed_run(plain_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain_run, tmp_path / "run")
    return tmp_path / "run"


def read_truth(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder.parent / "truth.csv", dtype=str)


def pixels(row: int) -> np.ndarray:
    """A picture that differs from row to row."""
    return np.random.default_rng(row).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def make_report(
    folder: Path, *, num_thumbnails: int = 4, title: str | None = None, out: Path | None = None, **settings: Any
) -> str:
    arguments = {"metrics": METRICS, "pixels": pixels, "seed": 0, **settings}
    config = ReportConfig(num_thumbnails=num_thumbnails, title=title)
    path = report.run(folder, report=config, out=out or folder, **arguments)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements, attributes, text and image captions of a page, as a browser would find them."""

    VOID = ("meta", "img", "br", "line", "circle", "path", "rect", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def gallery(text: str, heading: str) -> tuple[list[str], list[str]]:
    """Ids and tags below a heading, in their order."""
    block = text[text.index(f"<h3>{heading}</h3>") :]
    block = block[: block.index("</div>")]
    return re.findall(r'class="id" title="([^"]*)"', block), re.findall(r'class="tag (\w+)"', block)


def test_the_headline_has_the_figures_of_metrics_json(plain_run, plain_page):
    metrics = json.loads((plain_run / "metrics.json").read_text())
    scores = pd.read_parquet(plain_run / "ensemble/scores.parquet")
    flagged = ((scores["kind"] == "test") & (scores["score"] >= metrics["ensemble"]["threshold"])).sum()
    page = Page(plain_page)
    low, high = metrics["ensemble"]["ap_ci"]
    assert f"precision of {metrics['ensemble']['ap']:.3f} (95% interval {low:.3f} to {high:.3f})" in page.text
    assert f"A random order would reach about {metrics['prevalence']:.3f}" in page.text
    assert f"It flags {flagged} of 40 test images" in page.text
    assert "Recall not guaranteed: " in page.text
    assert f"the average precision is {metrics['test']['ensemble']['ap']:.3f}" in page.text
    assert "only one arm" in page.text
    assert not page.open, "all elements are closed"


def test_a_guarantee_is_told_as_one(tmp_path):
    write_run(tmp_path / "run", sizes=Sizes(train=90, holdout=200, positives=40), seed=1)
    guarantee = json.loads((tmp_path / "run/metrics.json").read_text())["ensemble"]["recall_guarantee"]
    assert guarantee["recall"] == 0.9, "the run has enough holdout positives"
    text = Page(make_report(tmp_path / "run")).text
    assert "Recall guaranteed with 95% confidence: With probability" in text
    assert "guaranteed with 95% confidence: at least 90% of the positives are found" in text
    assert "not guaranteed" not in text
    assert "The labelled images, but for the holdout, were cut into 3 parts" in text
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    held = metrics["holdout"]["ensemble"]["confusion"]
    positives = held["true_positives"] + held["false_negatives"]
    assert "On the 200 images of the holdout, which no model has seen, it finds at the threshold" in text
    assert f"{held['true_positives']} of {positives} positives, interval" in text and "; on the holdout;" in text
    assert (
        "Scores, holdout" in text and "ensemble on the holdout" in text and "scored by one fold model each" not in text
    )


def test_a_guarantee_by_group_is_never_read_as_one_of_the_images(tmp_path):
    write_run(tmp_path / "run", sizes=Sizes(train=300, holdout=700, positives=100), groups=True)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["ensemble"]["recall_guarantee"]["unit"] == "groups"
    text = Page(make_report(tmp_path / "run")).text
    assert "guaranteed with 95% confidence: at least 90% of the groups have all their positives found" in text
    assert "Guaranteed by group with 95% confidence: " in text
    assert "of the positives are found" not in text
    assert "the promise is on the share of groups" in text


def test_only_images_on_the_scale_of_the_threshold_are_called_missed_or_flagged(tmp_path):
    write_run(tmp_path / "run", sizes=Sizes(train=90, holdout=200, positives=40), seed=1)
    scores = pd.read_parquet(tmp_path / "run/ensemble/scores.parquet")
    threshold = json.loads((tmp_path / "run/metrics.json").read_text())["ensemble"]["threshold"]
    text = make_report(tmp_path / "run", num_thumbnails=200)
    for heading, target, missed in (("Hardest positives", 1, True), ("Highest-scored negatives", 0, False)):
        own = scores[scores["kind"].isin(["oof", "holdout"]) & (scores["target"] == target)]
        tagged = own[(own["score"] < threshold) == missed]
        expected = int((tagged["kind"] == "holdout").sum())
        assert len(gallery(text, heading)[1]) == expected < len(tagged)


def test_the_band_is_by_group_where_rows_come_in_groups(plain_run, monkeypatch):
    seen = []
    band = report_sections.precision_recall_band

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(options["groups"])
        return band(*arguments, **options)

    monkeypatch.setattr(report_sections, "precision_recall_band", watched)
    make_report(plain_run)
    table = read_table(plain_run / "table.parquet")
    assert seen[0].tolist() == table.units[table.rows("train")].tolist()


def test_warnings_of_the_evaluation_come_first(changed_run):
    metrics = json.loads((changed_run / "metrics.json").read_text())
    assert "fold models' scores" not in Page(make_report(changed_run)).text
    metrics["warnings"] = ["the fold models' scores are on different scales"]
    (changed_run / "metrics.json").write_text(json.dumps(metrics))
    assert "Read this first The fold models' scores are on different scales." in Page(make_report(changed_run)).text


def test_a_warning_of_the_evaluation_keeps_its_lines_and_is_told_once(changed_run):
    message = "2 images are the same\n  /data/" + "folder/" * 40 + "a.png\n  /data/b.png"
    metrics = json.loads((changed_run / "metrics.json").read_text())
    metrics["warnings"] = [message]
    (changed_run / "metrics.json").write_text(json.dumps(metrics))
    with (changed_run / "log.jsonl").open("a") as stream:
        stream.write(json.dumps({"event": "warning", "stage": "evaluate", "message": message}) + "\n")
    text = make_report(changed_run)
    assert text.count(message) == 1
    assert f'<li class="logged">{message}' in text
    assert text.index(message) < text.index("two images are the same"), "before those of the log"
    assert re.search(r"\.callout li \{[^}]*overflow-wrap: anywhere", text)
    assert re.search(r"\.callout li\.logged \{[^}]*white-space: pre-line", text)


def test_a_line_of_the_log_may_hold_separators_that_are_no_line_ends(changed_run):
    with (changed_run / "log.jsonl").open("a", encoding="utf-8") as stream:
        message = "img\x85.jpg\u2028 is grey"
        stream.write(json.dumps({"event": "warning", "stage": "x", "message": message}, ensure_ascii=False) + "\n")
    assert "is grey" in Page(make_report(changed_run)).text


def test_configured_shares_are_told_as_they_were_written(changed_run):
    metrics = json.loads((changed_run / "metrics.json").read_text())
    metrics["confidence"] = 0.975
    (changed_run / "metrics.json").write_text(json.dumps(metrics))
    assert "97.5% interval" in Page(make_report(changed_run)).text


MISSING_PIECES: dict[str, dict[str, Any]] = {
    "no test set": {"sizes": Sizes(test=0)},
    "no truth": {"truth": False},
    "no pool": {"sizes": Sizes(pool=0)},
    "a holdout and groups": {"sizes": Sizes(holdout=60), "groups": True},
    "one positive": {"sizes": Sizes(positives=1)},
    "no positives": {"sizes": Sizes(positives=0), "positives_in_folds": (0, 0, 0)},
    "a fold without positives": {"positives_in_folds": (9, 0, 9)},
    "only positives in a fold": {"sizes": Sizes(train=9), "positives_in_folds": (3, 1, 1)},
    "perfect ranking": {"skill": 60.0},
    "two folds": {"num_folds": 2},
    "multi-class": {"binary": False, "classes": ("a", "b", "c")},
    "multi-class without truth": {"binary": False, "classes": ("a", "b", "c"), "truth": False},
    "multi-class with a class that does not occur": {
        "binary": False,
        "classes": ("a", "b", "c", "d"),
        "sizes": Sizes(train=4, test=0, pool=0),
    },
}


@pytest.mark.parametrize("settings", MISSING_PIECES.values(), ids=MISSING_PIECES.keys())
def test_missing_pieces_leave_a_whole_page(tmp_path, settings):
    write_run(tmp_path / "run", **settings)
    page = Page(make_report(tmp_path / "run"))
    assert not page.open
    for heading in ("Data", "Ranking", "Models", "Folds", "Training", "Images to look at", "How to read this"):
        assert heading in page.text
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text


def test_a_page_without_thumbnails_pixels_log_and_rejected_rows(changed_run, plain_page):
    assert "<img" in plain_page
    (changed_run / "log.jsonl").unlink()
    (changed_run / "rejected.csv").unlink()
    assert "<img" not in make_report(changed_run, num_thumbnails=0)
    assert "<img" not in make_report(changed_run, pixels=None)


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "javascript:alert(3)", "{{ 7 * 7 }}")


def test_markup_in_ids_labels_titles_and_warnings_is_inert(tmp_path):
    hostile_ids = {row: HOSTILE[row % 4] + str(row) for row in range(190)}
    classes = ("<b>benign</b>", "'\"><script>alert(4)</script>", "</style><iframe src=x>")
    write_run(tmp_path / "run", binary=False, classes=classes, ids=hostile_ids)
    with (tmp_path / "run/log.jsonl").open("a") as stream:
        stream.write(json.dumps({"event": "warning", "stage": "x", "message": "<svg/onload=alert(5)>"}) + "\n")
    text = make_report(tmp_path / "run", title="<script src=//evil>", num_thumbnails=30)
    page = Page(text)
    assert not {"script", "iframe", "b", "object", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    for hostile in ("<script", "<img src=x", "<iframe", "<svg/onload", "<b>benign"):
        assert hostile not in text.lower()
    # They are there, as text.
    assert "<script>alert(1)</script>" in page.text
    assert '"><img src=x onerror=alert(2)>' in page.text
    assert "<svg/onload=alert(5)>" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_the_check_for_markup_can_fail(tmp_path, monkeypatch):
    assert "script" in Page("<p>" + "".join(HOSTILE[:2]) + "</p>").tags
    write_run(tmp_path / "run", ids=dict(enumerate(f"{HOSTILE[0]}{row}" for row in range(190))))
    unescaped = report._template().environment.overlay(autoescape=False).get_template("report.html.j2")
    monkeypatch.setattr(report, "_template", lambda: unescaped)
    assert HOSTILE[0] in make_report(tmp_path / "run")


def test_nothing_is_loaded_and_nothing_runs(plain_page):
    page = Page(plain_page)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    assert ("content", policy) in page.attributes
    assert not re.search(
        r"https?:|//[a-z]|@import|javascript:", re.sub(r"data:image/png;base64,[^\"]*", "", plain_page)
    )
    for name, value in page.attributes:
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
        if name in ("src", "srcset", "data", "action", "poster"):
            assert value.startswith("data:image/png;base64,")
    assert set(re.findall(r"url\((.)", plain_page)) <= {"#"}


def test_anchors_and_colours_are_defined(plain_page):
    ids = [value for name, value in Page(plain_page).attributes if name == "id"]
    used = {value for name, value in Page(plain_page).attributes if name in ("href", "xlink:href")}
    assert {f"#{id_}" for id_ in ids} >= used
    assert len(ids) == len(set(ids)), "no id twice"
    light, dark = re.findall(r":root \{(.*?)\}", plain_page, flags=re.DOTALL)
    colours = set(re.findall(r"var\(--([\w-]+)\)", plain_page)) - {"mono"}
    assert colours <= set(re.findall(r"--([\w-]+):", light))
    assert colours <= set(re.findall(r"--([\w-]+):", dark))


def test_the_same_files_give_the_same_bytes(plain_run, plain_page, tmp_path):
    truth = read_truth(plain_run)
    assert make_report(plain_run, truth=truth, out=tmp_path / "one") == plain_page
    assert make_report(plain_run, truth=truth, out=tmp_path / "two", seed=1) != plain_page, "bands follow the seed"


def test_a_failure_leaves_the_old_report(plain_page, changed_run):
    before = (changed_run / "report.html").read_text(encoding="utf-8")

    def broken(row: int) -> np.ndarray:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        make_report(changed_run, pixels=broken)
    assert (changed_run / "report.html").read_text(encoding="utf-8") == before
    assert not list((changed_run).rglob(".*.tmp"))


def test_galleries_are_in_the_order_of_the_scores(tmp_path):
    write_run(tmp_path / "run", sizes=Sizes(holdout=30))
    text = make_report(tmp_path / "run", num_thumbnails=5)
    scores = pd.read_parquet(tmp_path / "run/ensemble/scores.parquet").sort_values("score")
    threshold = json.loads((tmp_path / "run/metrics.json").read_text())["ensemble"]["threshold"]
    labelled = scores[scores["kind"].isin(["oof", "holdout"])]
    hardest = labelled[labelled["target"] == 1].head(5)
    assert gallery(text, "Hardest positives") == (
        hardest["id"].tolist(),
        ["missed"] * int((hardest["score"] < threshold).sum()),
    )
    negatives = labelled[labelled["target"] == 0].tail(5)[::-1]
    assert gallery(text, "Highest-scored negatives") == (
        negatives["id"].tolist(),
        ["flagged"] * int((negatives["score"] >= threshold).sum()),
    )
    for kind in ("test", "pool"):
        ids, _ = gallery(text, f"Highest-scored {kind} images")
        assert ids == scores[scores["kind"] == kind]["id"].tail(5)[::-1].tolist()


def test_an_id_is_shown_with_its_end_and_in_full_on_hover(tmp_path):
    ids = [
        "a/b-01.(2)_x",
        "<b>x</b>",
        "👩🏽‍⚕️/7",
        "patient_0001/" + "lesion_0001/" * 9 + "(view).2",
        "&lt;" * 30 + "<b>&amp;",
    ]
    write_run(tmp_path / "run", ids={row: ids[row % 5] + f"-{row}" for row in range(190)})
    text = make_report(tmp_path / "run", num_thumbnails=200)
    shown = [
        (unescape(title), unescape(words)) for title, words in re.findall(r'class="id" title="(.*?)">(.*?)<', text)
    ]
    assert len(shown) == 190
    for id_, words in shown:
        assert words == id_ or (words[0] == "…" and len(words) <= 36 and id_.endswith(words[1:]))
    rule = re.search(r"\.gallery \.id \{(.*?)\}", text)
    assert rule is not None and "overflow-wrap: anywhere" in rule[1]
    assert not re.search("nowrap|hidden|direction", rule[1]), "nothing of it is cut or turned by the page"
    assert "b" not in Page(text).tags


def test_pictures_are_those_of_the_named_images(plain_run):
    asked: list[int] = []

    def watched(row: int) -> np.ndarray:
        asked.append(row)
        return pixels(row)

    text = make_report(plain_run, pixels=watched)
    ids = re.findall(r'class="id" title="([^"]*)"', text)
    assert ids == [f"img-{row:04d}" for row in asked]


def test_mistakes_of_many_classes_name_both_classes(tmp_path):
    write_run(tmp_path / "run", binary=False, classes=("ant", "bee", "cow"), skill=1.0)
    text = make_report(tmp_path / "run", num_thumbnails=6)
    scores = pd.read_parquet(tmp_path / "run/ensemble/scores.parquet").set_index("id")
    ids, _ = gallery(text, "Most confident mistakes")
    assert len(ids) == 6
    for id_ in ids:
        row = scores.loc[id_]
        named = int(np.argmax([row["score_0"], row["score_1"], row["score_2"]]))
        assert named != row["target"]
        assert f"{('ant', 'bee', 'cow')[row['target']]} → {('ant', 'bee', 'cow')[named]}" in text
    worst = json.loads((tmp_path / "run/metrics.json").read_text())["ensemble"]["worst_recall"]["class"]
    assert f"The worst class is “{worst}”" in Page(text).text


def test_galleries_of_many_classes_name_the_class_they_are_ranked_for(tmp_path):
    classes = ("ant", "bee", "cow", "dog")  # no bee is among the labelled images
    write_run(tmp_path / "run", binary=False, classes=classes, sizes=Sizes(train=12), seed=249)
    table = read_table(tmp_path / "run/table.parquet")
    counts = np.bincount(table.targets[table.rows("train")], minlength=4)
    assert counts.tolist() == [3, 0, 2, 7]
    scores = pd.read_parquet(tmp_path / "run/ensemble/scores.parquet")
    raw = scores[[f"score_{number}" for number in range(4)]].to_numpy()
    scores["log_odds"] = raw[:, 2] - np.log(np.exp(raw[:, [0, 1, 3]]).sum(axis=1))
    scores["named"] = [classes[number] for number in raw.argmax(axis=1)]
    text = make_report(tmp_path / "run", num_thumbnails=5)
    for kind in ("test", "pool"):
        expected = scores[scores["kind"] == kind].sort_values("log_odds", ascending=False).head(5)
        heading = f"Highest-scored {kind} images for “cow”"
        assert gallery(text, heading)[0] == expected["id"].tolist()
        words = Page(text[text.index(f"<h3>{heading}") :].split("</div>")[0]).text
        for id_, score, named in zip(expected["id"], expected["log_odds"], expected["named"], strict=True):
            assert f"{id_}{wording.number(score, 2)} · {named} " in words


def test_alarms_sound_when_they_should(tmp_path):
    write_run(tmp_path / "bad", keep="best", skill=0.0, positives_in_folds=(9, 0, 9))
    text = Page(make_report(tmp_path / "bad")).text
    assert "Optimistic: efficientnet_b0 and resnet18 kept the checkpoint" in text
    assert "The out-of-fold figures of them and of the ensemble are likely better" in text
    assert "Not shown to be better than chance" in text
    assert "Few images to judge by: with 18 positives" in text
    assert "Fold 1 has no positive to judge by." in text


def test_classes_that_are_never_recognised_are_named(tmp_path):
    write_run(tmp_path / "run", binary=False, classes=("ant", "bee", "cow"), skill=6.0)
    assert "Never recognised" not in make_report(tmp_path / "run")
    path = tmp_path / "run/metrics.json"
    figures = json.loads(path.read_text())
    figures["ensemble"]["per_class"]["bee"]["recall"] = 0.0
    path.write_text(json.dumps(figures))
    assert (
        "Never recognised: every image of bee was taken for another class." in Page(make_report(tmp_path / "run")).text
    )


def test_folds_on_different_scales_are_told_from_folds_that_differ(changed_run):
    path = changed_run / "metrics.json"
    figures = json.loads(path.read_text())
    figures["ensemble"]["ap"] = min(fold["ap"] for fold in figures["ensemble"]["folds"]) - 0.01
    path.write_text(json.dumps(figures))
    text = Page(make_report(changed_run)).text
    assert "than each alone: the scores of their models are on different scales" in text
    assert "look for what is different there" not in text


def test_alarms_are_silent_when_all_is_well(tmp_path):
    write_run(tmp_path / "good", sizes=Sizes(positives=40), skill=4.0)
    (tmp_path / "good/log.jsonl").unlink()
    page = Page(make_report(tmp_path / "good"))
    assert ("id", "warnings") not in page.attributes
    assert "No figure here is." in page.text


def test_warnings_of_an_earlier_attempt_are_forgotten(changed_run, plain_page):
    assert "two images are the same" in plain_page
    with (changed_run / "log.jsonl").open("a") as stream:
        for event in (
            {"event": "started", "stage": "prepare"},
            {"event": "warning", "stage": "prepare", "message": "one image is grey"},
            {"event": "warning", "stage": "prepare", "message": "one image is grey"},
        ):
            stream.write(json.dumps(event) + "\n")
        stream.write('{"event": "warn')  # another process is writing
    text = make_report(changed_run)
    assert "two images are the same" not in text
    assert text.count("one image is grey") == 1


def test_a_curve_of_the_test_set_needs_its_truth(plain_run, plain_page):
    assert "ensemble on the test set" in plain_page
    assert "ensemble on the test set" not in make_report(plain_run)


def test_training_curves_are_of_the_models_that_have_them(plain_page):
    text = Page(plain_page).text
    assert text.count("Held-out AP at the end: fold 0") == 1, "one of two models has curves"
    assert plain_page.count('aria-label="Loss over training steps"') == 1


def test_the_look_whose_weights_are_kept_is_shown(tmp_path):
    write_run(tmp_path / "last", curves=True)
    write_run(tmp_path / "best", curves=True, keep="best")
    rises_and_falls = {"step": [10, 20, 30, 40, 1050], "loss": 0.1, "lr": 1e-3, "seconds": 1.0}
    for name in ("last", "best"):
        for fold, ap in enumerate([[0.25, None, 0.5, 0.5, 0.125], [0.25, 0.375, 0.4375, 0.5, 0.625]]):
            write_csv(
                tmp_path / name / f"train/supervised/{MODELS[0]}/fold{fold}/curves.csv",
                pd.DataFrame({**rises_and_falls, "ap": ap}),
            )
    last, best = (Page(make_report(tmp_path / name)).text for name in ("last", "best"))
    assert "Held-out AP at the end: fold 0 0.125, fold 1 0.625, fold 2 " in last
    assert "Best held-out AP, where the weights were kept (dots): fold 0 0.500 at step 30" in best
    assert "fold 1 0.625 at step 1,050" in best
    assert "at the end" not in best and "kept" not in last


def test_what_is_said_of_intervals_is_how_they_were_made(tmp_path, plain_page):
    write_run(tmp_path / "groups", groups=True)
    write_run(tmp_path / "classes", binary=False, classes=("a", "b", "c"))
    write_run(tmp_path / "both", binary=False, classes=("a", "b", "c"), groups=True)
    plain, groups, classes, both = (
        Page(page).text
        for page in (plain_page, *(make_report(tmp_path / name) for name in ("groups", "classes", "both")))
    )
    assert "bootstrap resamples, in which positives and negatives are drawn separately." in plain
    assert "groups are drawn whole, those with positives apart from those without." in groups
    assert "the classes are drawn separately." in classes
    assert "groups are drawn whole, apart by the rarest class in each." in both
    assert "is binomial (Clopper–Pearson)." in plain
    assert "is binomial (Clopper–Pearson), for the number of independent positives that would tell" in groups
    assert "Clopper" not in classes + both, "there is no threshold"


def test_byte_identical_images_are_said_to_be_drawn_together(changed_run):
    table = read_table(changed_run / "table.parquet")
    table.frame.loc[[0, 1], "sha256"] = "a" * 64
    write_table(changed_run / "table.parquet", table)
    assert "and byte-identical images are one group." in Page(make_report(changed_run)).text


def test_the_band_is_described_for_any_run(plain_page):
    text = Page(plain_page).text
    assert "The band is the 95% interval of the ensemble’s precision at each recall, one recall at a time" in text
    assert "widest" not in text


def test_folds_are_numbered_as_their_folders_are(tmp_path, plain_run, plain_page):
    assert sorted(path.name for path in plain_run.glob("train/*/*/fold*")) == ["fold0", "fold1", "fold2"]
    assert "The numbers are those of the folders (fold0, fold1, fold2)." in Page(plain_page).text
    assert {int(number) for number in re.findall(r"\b[Ff]old(?: |&nbsp;)(\d+)", plain_page)} == {0, 1, 2}
    write_run(tmp_path / "run", num_folds=5)
    assert "(fold0, fold1, fold2, …)" in Page(make_report(tmp_path / "run")).text


def test_a_table_that_is_wider_than_the_page_shows_that_it_scrolls(plain_page):
    rule = re.search(r"\n\.scroll \{(.*?)\}", plain_page)
    assert rule is not None
    assert rule[1].count("local") == 2, "covers that scroll away"
    assert rule[1].count("var(--edge), transparent) scroll") == 2, "above shadows that stay"


def test_bold_needs_an_interval_above_all_others():
    def rows(*bounds: tuple[float | None, float | None]) -> list[dict[str, Any]]:
        return [{"figures": {"ap_ci": list(bound)}} for bound in bounds]

    assert report_sections._best(rows((0.7, 0.8), (0.4, 0.6), (0.3, 0.69))) == 0
    assert report_sections._best(rows((0.4, 0.6), (0.7, 0.8))) == 1
    assert report_sections._best(rows((0.6, 0.8), (0.4, 0.61))) is None
    assert report_sections._best(rows((0.6, 0.8), (None, None))) is None
    assert report_sections._best(rows((0.6, 0.8))) is None


def test_duplicates_across_splits_are_counted(changed_run, plain_page):
    assert "No two images are byte-identical." in plain_page
    table = read_table(changed_run / "table.parquet")
    table.frame.loc[[0, 1, 2], "sha256"] = "a" * 64
    table.frame.loc[[3, 189], "sha256"] = "b" * 64
    write_table(changed_run / "table.parquet", table)
    text = Page(make_report(changed_run)).text
    assert "5 images are byte-identical to another one, in 2 sets; 1 set lies in more than one split." in text


def test_a_page_of_large_colour_images_stays_below_three_megabytes(tmp_path):
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]

    def photo(row: int) -> np.ndarray:
        top, left = (37 * row) % 200, (53 * row) % 400
        return photos[row % 2][top : top + 224, left : left + 224]

    write_run(tmp_path / "run", sizes=Sizes(pool=40, positives=30))
    text = make_report(tmp_path / "run", pixels=photo, num_thumbnails=24)
    assert text.count("<img") == 4 * 24
    assert len(text.encode()) < 3_000_000


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (wording.number(0.64519), "0.645"),
        (wording.number(None), "–"),
        (wording.number(float("nan")), "–"),
        (wording.number(-1.5, 2), "−1.50"),
        (wording.percent(0.876), "88%"),
        (wording.percent(0.0553), "5.5%"),
        (wording.percent(0.0021), "0.21%"),
        (wording.percent(0.99), "99%"),
        (wording.percent(0.99996), "99.9%"),
        (wording.percent(1.0), "100%"),
        (wording.exact_percent(0.975), "97.5%"),
        (wording.exact_percent(0.999), "99.9%"),
        (wording.exact_percent(0.07), "7%"),
        (wording.span([0.5, 0.75]), "0.500 to 0.750"),
        (wording.span([None, None]), "–"),
        (wording.duration(3.21), "3.2 s"),
        (wording.duration(59.97), "1 min 00 s"),
        (wording.duration(7322), "2 h 02 min"),
        (wording.listing(["a", "b", "c"]), "a, b and c"),
        (wording.listing([]), ""),
        (wording.ending("p/lesion_2", 10), "p/lesion_2"),
        (wording.ending("pp/lesion_2", 10), "…/lesion_2"),
        (wording.ending("a.(1)/b-01.(2)_x", 10), "…-01.(2)_x"),
        (wording.ending("👩🏽‍⚕️/👩🏽‍⚕️-7", 6), "…⚕️-7"),
        (wording.ending("שלום/12-(3)", 7), "…12-(3)"),
        (wording.sentence("no guarantee: too few."), "No guarantee: too few."),
    ],
)
def test_numbers_read_well(got, expected):
    assert got == expected

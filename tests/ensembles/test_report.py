"""The report tells what the figures say, from run folders that the real writers wrote with made-up scores."""

import json
import re
from typing import Any

import pandas as pd
import pytest

from ensembles import report_sections, wording
from tests.ensembles.report_runs import MODELS, Page, Sizes, gallery, make_report, write_run
from trainers.atomic import write_csv
from trainers.table import read_table, write_table


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


def test_a_threshold_says_what_it_was_chosen_for_and_what_work_it_makes(tmp_path):
    write_run(tmp_path / "run", threshold={"rule": "budget", "max_reviewed": 5})
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    text = Page(make_report(tmp_path / "run")).text
    assert "The threshold was chosen for at most 5 test images flagged." in text
    assert "Threshold: 5 of 40 test images are flagged, at most 5 may be" in text
    assert "Recall not guaranteed: The rule of the threshold, budget, promises no recall" in text
    assert f"{wording.percent(metrics['ensemble']['reviewed_at_threshold'])} of the images are flagged" in text
    assert "spares little work" not in text


def test_a_threshold_that_flags_nearly_all_is_not_praised(tmp_path):
    write_run(tmp_path / "run", skill=0.0)  # at recall 0.9
    text = Page(make_report(tmp_path / "run")).text
    assert "That spares little work: as many images drawn at random would find" in text


def test_a_rule_that_found_no_threshold_is_told_with_its_reason(tmp_path):
    write_run(tmp_path / "run", threshold={"rule": "precision", "precision": 0.99})
    text = Page(make_report(tmp_path / "run")).text
    assert "There is no threshold: a precision of at least 0.99 with 95% confidence was asked for." in text
    assert "at least 299 flagged positives without a false alarm are needed" in text


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
    assert "than each alone: the scores of their models are probably on different scales" in text
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

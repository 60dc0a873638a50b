"""The galleries of the report show the right images, in the right order, with the right words."""

import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_image

from ensembles import wording
from tests.ensembles.report_runs import Page, Sizes, gallery, make_report, pixels, write_run
from trainers.table import read_table


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


@pytest.mark.parametrize("rule", [{"rule": "budget", "max_reviewed": 4}, {"rule": "cost", "cost_ratio": 12.0}])
def test_what_is_called_flagged_out_of_fold_is_what_is_counted(tmp_path, rule):
    """A budget is for scores of all fold models, a cost for their probability; out of fold they are cut elsewhere."""
    write_run(tmp_path / "run", threshold=rule, skill=1.0)
    text = make_report(tmp_path / "run", num_thumbnails=200)
    ensemble = json.loads((tmp_path / "run/metrics.json").read_text())["ensemble"]
    _, missed = gallery(text, "Hardest positives")
    _, flagged = gallery(text, "Highest-scored negatives")
    assert len(flagged) == ensemble["confusion"]["false_positives"]
    assert len(missed) == ensemble["confusion"]["false_negatives"]
    scores = pd.read_parquet(tmp_path / "run/ensemble/scores.parquet").query("kind == 'oof' and target == 0")
    by_score = int((scores["score"] >= ensemble["threshold"]).sum())
    assert by_score != len(flagged), "the control"


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


def test_a_page_of_large_colour_images_stays_below_three_megabytes(tmp_path):
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]

    def photo(row: int) -> np.ndarray:
        top, left = (37 * row) % 200, (53 * row) % 400
        return photos[row % 2][top : top + 224, left : left + 224]

    write_run(tmp_path / "run", sizes=Sizes(pool=40, positives=30))
    text = make_report(tmp_path / "run", pixels=photo, num_thumbnails=24)
    assert text.count("<img") == 4 * 24
    assert len(text.encode()) < 3_000_000

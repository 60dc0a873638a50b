"""The page itself: inert markup, nothing remote, the same bytes every time, the old one when it fails."""

import json
import re

import numpy as np
import pytest

from ensembles import report
from tests.ensembles.report_runs import Page, make_report, read_truth, write_run

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
    unescaped = report.page_environment().overlay(autoescape=False).get_template("report.html.j2")
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


def test_a_table_that_is_wider_than_the_page_shows_that_it_scrolls(plain_page):
    rule = re.search(r"\n\.scroll \{(.*?)\}", plain_page)
    assert rule is not None
    assert rule[1].count("local") == 2, "covers that scroll away"
    assert rule[1].count("var(--edge), transparent) scroll") == 2, "above shadows that stay"

import json

import pandas as pd
import yaml

from tests.ensembles.report_runs import MODELS, Page, make_report, write_run
from trainers.atomic import write_csv


def test_backbones_learnt_without_labels_have_their_curves_and_probes_in_the_report(tmp_path):
    pretrained, not_asked_for = tmp_path / "pretrained", tmp_path / "other"
    for folder, arm in ((pretrained, "pretrained"), (not_asked_for, "none")):
        write_run(folder)
        _set(folder / "config.yaml", pool={"arm": arm}, pretrain={"method": "vicreg", "steps": 1500})
        rank = [3.25, None, 12.5]
        curve = {"step": [0, 10, 20], "loss": [9.0, 5.0, 4.0], "effective_rank": rank, "spread": [0.2, None, 0.4]}
        write_csv(folder / f"pretrain/{MODELS[0]}/curves.csv", pd.DataFrame(curve))
        write_csv(folder / "pretrain/of_an_earlier_config/curves.csv", pd.DataFrame(curve))
        with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            for told in ("what an earlier attempt found", "linear 0.220 -> 0.370"):
                event = {"event": "finished", "stage": f"pretrain-probe/{MODELS[0]}", "summary": told}
                stream.write(json.dumps(event) + "\n")
    page = make_report(pretrained)
    text = Page(page).text
    assert "learnt from the pool first (vicreg, 1,500 steps)" in text
    assert "Effective rank 3.2 before, 12.5 after; spread of the embeddings 0.20, 0.40." in text
    assert "Probes of the frozen features, to look at: linear 0.220 -> 0.370." in text
    assert "earlier" not in text
    assert page.count('aria-label="Effective rank over training steps"') == 1
    assert "Effective rank" not in Page(make_report(not_asked_for)).text


def _set(path, **sections):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, fields in sections.items():
        config[name] |= fields
    path.write_text(yaml.safe_dump(config), encoding="utf-8")

import json

import pytest

from scripts.bench.blend import main


def test_all_sides_agree_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(blends=20, positives=15, negatives=200, turns=1, seed=0)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "blend"
    for case in ("no_ties", "many_ties"):
        assert result[case]["largest_difference"] < 1e-12
        assert min(result[case][f"{side}_per_second"] for side in ("sklearn", "argsort", "rarefind")) > 0

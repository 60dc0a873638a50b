"""`rarefind bench embed` says what it measured, as JSON in its last line."""

import json

import pytest

from scripts.bench.embed import main


def test_both_sides_are_measured_against_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    main("test_resnet", images=10, pixels=64, image_size=32, network_size=48, batch_size=4, workers=None, repeats=2)
    told = capsys.readouterr().out.splitlines()
    result = json.loads(told[-1])
    assert result["benchmark"] == "embed" and result["repeats"] == 2 and result["network_size"] == 48
    for side in ("files", "cache"):
        low, high = result[f"{side}_ratio_range"]
        assert 0 < low <= result[f"{side}_ratio"] <= high
        assert any(line.startswith(f"  from {side}") for line in told)
    assert 0 < result["limit_from_files"] < 1 and result["decode_ms_per_image"] > 0

"""Scores, attributes, strengths, gradients and the ISP's rendering are those of tests/golden.json."""

import json
from typing import Any

import pytest

from attriqa.models import PACKAGED
from tests import golden

SAVED = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize("name", sorted(SAVED["golden"]))
def test_numbers_are_the_golden_ones(name: str) -> None:
    found = golden.of_weights(name) if name != "isp" else {"render": golden.of_isp()}
    expected: dict[str, Any] = SAVED["golden"][name]
    assert found.keys() == expected.keys()
    for case, parts in expected.items():
        assert found[case].keys() == parts.keys()
        for part, numbers in parts.items():
            ours, about = found[case][part], f"{name}, {case}: {part}"
            assert ours["values"] == pytest.approx(numbers["values"], rel=1e-6, abs=1e-6), about
            assert ours["magnitude"] == pytest.approx(numbers["magnitude"], rel=1e-5), about
            if golden.machine() == SAVED["machine"]:
                assert ours["sha256"] == numbers["sha256"], about


def test_every_packaged_weight_has_its_golden_numbers() -> None:
    assert set(SAVED["golden"]) == {*PACKAGED, "isp"}

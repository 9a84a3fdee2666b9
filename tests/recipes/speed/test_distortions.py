import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attriqa.distortions import DISTORTION_KEYS

Recipe = Callable[..., subprocess.CompletedProcess[str]]
# The two sides draw different numbers, or interpolate, denoise or cut colours in different ways.
OTHER_DRAWS = {
    "motion_blur": 0.1,
    "color_shift": 0.3,
    "color_quantization": 0.15,
    "white_noise": 0.03,
    "white_noise_cc": 0.03,
    "impulse_noise": 0.15,
    "multiplicative_noise": 0.03,
    "denoise": 0.15,
    "jitter": 0.2,
    "non_eccentricity_patch": 0.3,
    "color_block": 0.4,
}


@pytest.mark.slow
def test_both_sides_do_the_same_and_every_number_is_written(run_recipe: Recipe, tmp_path: Path) -> None:
    done = run_recipe("evals/speed/distortions.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert {"cpu", "threads", "torch", "batch"} <= set(record)
    rows = record["distortions"]
    assert tuple(rows) == DISTORTION_KEYS
    for key, numbers in rows.items():
        assert f"| {key} | {' | '.join(f'{value:.4g}' for value in numbers.values())} |" in done.stdout
        speeds = numbers["images_per_s_per_core"], numbers["port_images_per_s_per_core"]
        assert numbers["ratio"] == pytest.approx(speeds[0] / speeds[1])  # one round
        tolerance = OTHER_DRAWS.get(key, 0.015)
        assert numbers["rms_change"] == pytest.approx(numbers["port_rms_change"], rel=tolerance), key
    mix = record["mix"]
    for name, value in mix.items():
        assert f"| {name} | {value:.4g} |" in done.stdout
    # Each distortion equally often: the seconds add up.
    seconds = sum(1 / numbers["images_per_s_per_core"] for numbers in rows.values())
    assert mix["images_per_s_per_core"] == pytest.approx(25 / seconds)
    assert sum(numbers["share"] for numbers in rows.values()) == pytest.approx(1)
    assert mix["least_ratio"] == min(numbers["ratio"] for numbers in rows.values())
    hours = 1_300_000 / mix["images_per_s_per_core"] / 16 / 3600
    assert mix["exiqa_100k_hours_on_16_cores"] == pytest.approx(hours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--photos", "no-such-folder"), "no-such-folder"),
        (("--size", "40", "64"), "size: expected sides of 48 px or more for non_eccentricity_patch, got (40, 64)"),
    ],
)
def test_a_wrong_argument_is_named(run_recipe: Recipe, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = run_recipe("evals/speed/distortions.py", "--smoke", "--out", tmp_path, *words)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr

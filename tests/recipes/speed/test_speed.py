"""The recipes that measure speed: each is run as users run it, prints what it writes, and refuses what it cannot do."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from attriqa.distortions import DISTORTION_KEYS
from tests.support import dng_files, small_net
from tests.support.trees import clive as clive_tree
from tests.support.trees import unlabelled as unlabelled_tree

Run = Callable[..., subprocess.CompletedProcess[str]]
PARTS = {
    "score": ("score", "reward", "memory", "cold"),
    "training": ("pretrain",),
    "isp": ("raw", "memory", "env"),
    "distortions": ("distortions", "mix"),
    "generators": ("step", "decode"),
}
# The two sides draw different numbers, or interpolate, denoise or cut colours in different ways.
OTHER_DRAWS = {
    **dict.fromkeys(("white_noise", "white_noise_cc", "multiplicative_noise"), 0.03),
    **dict.fromkeys(("color_quantization", "impulse_noise", "denoise"), 0.15),
    **dict.fromkeys(("color_shift", "non_eccentricity_patch"), 0.3),
    **{"motion_blur": 0.1, "jitter": 0.2, "color_block": 0.4},
}


class Measured(NamedTuple):
    record: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def measured(run_recipe: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """``measured(name)``: what a recipe's smallest run wrote and printed."""
    folder, known = tmp_path_factory.mktemp("speed"), dict[str, Measured]()
    model = ("--model", small_net.save(folder / "small.safetensors"))
    photos = ("--photos", clive_tree.build_photos(folder / "photos", count=2, side=96))
    more = {
        "training": photos,
        "generators": (*model, "--threads", 1, "--what", *PARTS["generators"]),
        "score": model,
        "isp": model,
    }

    def measure(name: str) -> Measured:
        if name not in known:
            out = folder / name
            done = run_recipe(f"evals/speed/{name}.py", "--smoke", "--out", out, *more.get(name, ()), timeout=280)
            assert done.returncode == 0, done.stderr
            assert json.loads((out / "config.json").read_text())["out"] == str(out)
            known[name] = Measured(json.loads((out / "metrics.json").read_text()), done.stdout)
        return known[name]

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_it_prints_what_it_writes(measured: Callable[[str], Measured], name: str) -> None:
    record, printed = measured(name)
    assert {"cpu", "threads", "torch", *PARTS[name]} <= record.keys()
    for part in PARTS[name]:
        for key, value in record[part].items():
            cells = [f"{number:.4g}" for number in (value.values() if isinstance(value, dict) else [value])]
            assert f"| {key} | {' | '.join(cells)} |" in printed
            if key.endswith("_low"):
                assert value <= record[part][key[:-4]] <= record[part][f"{key[:-4]}_high"]


@pytest.mark.slow
def test_score_against_its_parts(measured: Callable[[str], Measured]) -> None:
    record = measured("score").record
    score, reward, memory, cold = (record[part] for part in PARTS["score"])
    slower = min(score["decode_images_per_s"], score["encoder_images_per_s"])
    assert score["ratio"] == pytest.approx(score["score_images_per_s"] / slower)
    assert score["n"] == 4
    for dtype in ("fp32", "bf16"):  # one round: the medians are that round's
        assert reward[f"{dtype}_ratio"] == pytest.approx(reward[f"{dtype}_reward_s"] / reward[f"{dtype}_encoder_s"])
    for view in ("full", "five_crop"):
        assert memory[f"{view}_backward_bytes_per_pixel"] > 1.5 * memory[f"{view}_forward_bytes_per_pixel"] > 0
    assert min(memory[f"{case}_mib"] for case in ("file", "tensor_gradient", "batch", "batch_gradient", "files")) > 0
    assert cold["import_s"] + cold["load_s"] + cold["first_score_s"] < cold["wall_s"]
    assert cold["import_torch_s"] > 0


@pytest.mark.slow
def test_a_training_step_against_the_encoder_and_the_input(measured: Callable[[str], Measured]) -> None:
    numbers = measured("training").record["pretrain"]
    assert min(numbers.values()) > 0
    assert numbers["ratio"] == pytest.approx(numbers["step_images_per_s"] / numbers["encoder_images_per_s"])
    cores = numbers["step_images_per_s"] / numbers["input_images_per_s_per_core"]
    assert numbers["cores_to_feed_it"] == pytest.approx(cores)


@pytest.mark.slow
def test_both_sides_of_a_distortion_do_the_same(measured: Callable[[str], Measured]) -> None:
    record = measured("distortions").record
    rows, mix = record["distortions"], record["mix"]
    assert tuple(rows) == DISTORTION_KEYS
    for key, numbers in rows.items():
        speeds = numbers["images_per_s_per_core"], numbers["port_images_per_s_per_core"]
        assert numbers["ratio"] == pytest.approx(speeds[0] / speeds[1])
        tolerance = OTHER_DRAWS.get(key, 0.015)
        assert numbers["rms_change"] == pytest.approx(numbers["port_rms_change"], rel=tolerance), key
    # Each distortion equally often: the seconds add up.
    seconds = sum(1 / numbers["images_per_s_per_core"] for numbers in rows.values())
    assert mix["images_per_s_per_core"] == pytest.approx(25 / seconds)
    assert sum(numbers["share"] for numbers in rows.values()) == pytest.approx(1)
    assert mix["least_ratio"] == min(numbers["ratio"] for numbers in rows.values())
    hours = 1_300_000 / mix["images_per_s_per_core"] / 16 / 3600
    assert mix["exiqa_100k_hours_on_16_cores"] == pytest.approx(hours)


@pytest.mark.slow
def test_the_environment_against_the_reward_alone(measured: Callable[[str], Measured]) -> None:
    record = measured("isp").record
    raw, memory, env = (record[part] for part in PARTS["isp"])
    assert {"model", "side_px", "view"} <= record.keys()
    for count in (1, 4):
        # The environment renders besides: it cannot be faster than the reward alone, but for noise.
        assert 0 < env[f"ratio_{count}"] < 1.5
        of_one_round = env[f"steps_per_s_{count}"] / env[f"reward_images_per_s_{count}"]
        assert env[f"ratio_{count}"] == pytest.approx(of_one_round)
    assert env["times_one_by_one_4"] == pytest.approx(env["steps_per_s_4"] / env["one_by_one_steps_per_s_4"])
    assert env["render_images_per_s"] > 0
    assert (raw["files"], raw["mean_megapixels"]) == (1, pytest.approx(0.03))
    assert raw["decoded_ms"] > raw["cached_ms"] > 0
    # 64 x 64 px of three float16, and the file's header around them; a thumbnail, six scores, the clipped share.
    assert memory["linear_light_mib"] == pytest.approx(1000 * 64 * 64 * 6 / 2**20)
    assert 1 < memory["cache_files_mib"] / (1000 * 64 * 85 * 6 / 2**20) < 1.1
    assert memory["starts_mib"] == pytest.approx(1000 * (3 * 64 * 64 + 4 * 7) / 2**20)


@pytest.mark.slow
def test_the_rewards_share_of_a_step_and_of_the_memory(measured: Callable[[str], Measured]) -> None:
    record = measured("generators").record
    step, decode = record["step"], record["decode"]
    assert "compare" not in record
    for method in ("policy", "backprop"):
        assert 0 < step[f"{method}_share"] < 1
        assert step[f"{method}_share"] == pytest.approx(step[f"{method}_reward_s"] / step[f"{method}_step_s"])
    assert decode["reward_of_budget"] == pytest.approx(decode["reward_mib"] / decode["budget_mib"])
    more = decode["pictures_both_mib"] - decode["pictures_decoder_mib"]
    assert decode["pictures_reward_of_budget"] == pytest.approx(more / decode["budget_mib"])
    assert decode["pictures_both_mib"] > 0


def test_a_raw_that_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, folder = load_recipe("isp", "evals/speed"), tmp_path / "raws"
    folder.mkdir()
    dng_files.write_dng(folder / "good.dng", dng_files.mosaic_of(dng_files.smooth_scene(64, 80)))
    (folder / "bad.dng").write_bytes(b"no raw file")
    numbers = recipe.measure_raw(recipe.Config(raw=folder, side=32, rounds=1), tmp_path / "kept")
    assert numbers["files"] == 1
    assert "left out:" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A recipe sets those of torch, also in this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the flags below speak of."""
    root = tmp_path_factory.mktemp("places")
    one = clive_tree.build_photos(root / "one", count=1, side=96)
    (root / "empty").mkdir()
    return {"ONE": str(one), "EMPTY": str(root / "empty"), "MODEL": str(small_net.save(root / "small.safetensors"))}


load_recipe = cache(unlabelled_tree.load_recipe)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("clip", "--prompts 0", "--prompts: expected at least 1, got 0"),
        ("clip", "--rounds 0", "--rounds: expected at least 1, got 0"),
        ("distortions", "--batch 0", "--batch: expected at least 1, got 0"),
        ("distortions", "--photos nowhere", "nowhere"),
        ("distortions", "--size 40 64", r"size: .* 48 px or more for non_eccentricity_patch, got \(40, 64\)"),
        ("generators", "--what compare", "photos: expected a folder of images"),
        ("generators", "--what step --batch 0", "--batch: expected at least 1, got 0"),
        ("generators", "--what decode --decode-size 100", "decode_size: .* multiple of 8 of at least 32, got 100"),
        ("generators", "--what step --last-steps 3 --model MODEL", "last_steps: expected at most steps = 2, got 3"),
        ("generators", "--what compare --photos ONE --model MODEL", "photos: expected at least 2 images in .*, got 1"),
        ("isp", "--rounds 0", "--rounds: expected at least 1"),
        ("isp", "--envs 4 --one-by-one 8", "the latter among the former"),
        ("isp", "--photos nowhere", "nowhere"),
        ("isp", "--photos EMPTY --model MODEL", "no images in "),
        ("isp", "--photos MODEL --model MODEL", "small.safetensors"),
        ("isp", "--raw nowhere --model MODEL", "there is no nowhere"),
        ("score", "--n 0", "--n: expected at least 1, got 0"),
        ("score", "--photos nowhere --what score --model MODEL", "nowhere"),
        ("training", "--photos nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flags: str, message: str
) -> None:
    words = [places.get(word, word) for word in flags.split()]
    with pytest.raises(SystemExit) as end:
        load_recipe(name, "evals/speed").main([*words, "--smoke", "--out", str(tmp_path / "out")])
    assert re.search(message, str(end.value.code) + capsys.readouterr().err)

"""The speed recipe of the tuning environment runs, measures what it says, and refuses what it cannot do."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import pytest
import torch

from tests.support import dng_files, small_net

Run = Callable[..., "CompletedProcess[str]"]
SCRIPT = Path(__file__).resolve().parents[3] / "evals" / "speed" / "isp.py"


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """The recipe, in this process: each start of Python with torch takes seconds."""
    spec = importlib.util.spec_from_file_location("recipe_speed_isp", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


@pytest.mark.slow
def test_smoke(tmp_path: Path, run_recipe: Run) -> None:
    weights = small_net.save(tmp_path / "small.safetensors")
    done = run_recipe("evals/speed/isp.py", "--smoke", "--model", weights, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert {"cpu", "torch", "model", "side_px", "view"} <= found.keys()
    env = found["env"]
    for count in (1, 4):
        # The environment renders besides: it cannot be faster than the reward alone, but for noise.
        assert 0 < env[f"ratio_{count}"] < 1.5
        assert env[f"ratio_{count}_low"] <= env[f"ratio_{count}"] <= env[f"ratio_{count}_high"]
        measured = env[f"steps_per_s_{count}"] / env[f"reward_images_per_s_{count}"]
        assert env[f"ratio_{count}"] == pytest.approx(measured)  # of one round
    assert env["times_one_by_one_4"] == pytest.approx(env["steps_per_s_4"] / env["one_by_one_steps_per_s_4"])
    assert env["render_images_per_s"] > 0
    assert found["raw"]["files"] == 1
    assert found["raw"]["mean_megapixels"] == pytest.approx(0.03)
    assert found["raw"]["decoded_ms"] > found["raw"]["cached_ms"] > 0
    # 64 x 64 px of three float16, and the file's header around them; a thumbnail, six scores, the clipped share.
    assert found["memory"]["linear_light_mib"] == pytest.approx(1000 * 64 * 64 * 6 / 2**20)
    assert 1 < found["memory"]["cache_files_mib"] / (1000 * 64 * 85 * 6 / 2**20) < 1.1
    assert found["memory"]["starts_mib"] == pytest.approx(1000 * (3 * 64 * 64 + 4 * 7) / 2**20)
    for number in (env["ratio_4"], found["raw"]["decoded_ms"], found["memory"]["cache_files_mib"]):
        assert f"{number:.4g}" in done.stdout
    assert json.loads((tmp_path / "config.json").read_text())["side"] == 64


def test_a_raw_that_cannot_be_read_is_left_out(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "raws"
    folder.mkdir()
    dng_files.write_dng(folder / "good.dng", dng_files.mosaic_of(dng_files.smooth_scene(64, 80)))
    (folder / "bad.dng").write_bytes(b"no raw file")
    found = recipe.measure_raw(recipe.Config(raw=folder, side=32, rounds=1), tmp_path / "kept")
    assert found["files"] == 1
    assert "left out:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "rounds: expected at least 1"),
        (["--envs", "4", "--one-by-one", "8"], "the latter among the former"),
        (["--photos", "nowhere"], "nowhere"),
        (["--photos", str(SCRIPT)], "isp.py"),
        (["--raw", "nowhere"], "there is no nowhere"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    weights = small_net.save(tmp_path / "small.safetensors")
    with pytest.raises(SystemExit) as end:
        recipe.main(["--smoke", "--model", str(weights), "--out", str(tmp_path), *flags])
    assert message in str(end.value.code) + capsys.readouterr().err

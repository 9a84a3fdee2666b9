"""AttributeNet's distortion head: what it says, the recipe that teaches it, and the measure of whether it is right."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa import QualityReward
from attriqa.distortions import DISTORTION_KEYS
from attriqa.models import AttributeNet, AttributeNetConfig, checkpoint, load_with_provenance
from tests.support import small_net

Run = Callable[..., subprocess.CompletedProcess[str]]
HEAD = ("--smoke", "--seed", "1")


def with_head(reads: str = "features", seed: int = 0) -> AttributeNet:
    """A random net with a distortion head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = dataclasses.replace(small_net.CONFIG, distortion_width=16, regressor_reads=reads)  # type: ignore[arg-type]
        return AttributeNet(config).eval()


def pictures(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    return torch.nn.functional.interpolate(coarse, (96, 96), mode="bilinear")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    net = with_head()
    path = tmp_path / "head.safetensors"
    config = {**dataclasses.asdict(net.config), "taps": list(net.config.taps)}
    checkpoint.save(path, net.state_dict(), architecture="AttributeNet", config=config, provenance={})
    return path


def test_strengths_are_weighted_means_of_their_own_five_probabilities() -> None:
    net = with_head()
    assert net.distortion_head is not None
    with torch.no_grad():
        net.distortion_head.weights.copy_(torch.randn(25, 5, generator=torch.Generator().manual_seed(1)))
        said = net(pictures())
    assert said.distortions.shape == (3, 25)
    assert said.attribute_probs.shape == (3, 125)
    shares = net.distortion_head.weights.detach().softmax(1)
    for index in range(25):
        own = said.attribute_probs[:, 5 * index : 5 * index + 5]
        torch.testing.assert_close(said.distortions[:, index], own @ shares[index])
        assert (said.distortions[:, index] >= own.amin(1) - 1e-6).all()
        assert (said.distortions[:, index] <= own.amax(1) + 1e-6).all()


def test_the_regressor_sees_what_its_config_says() -> None:
    for reads, features, probs in (("features", 1, 0), ("attributes", 0, 1), ("both", 1, 1)):
        net = with_head(reads)
        assert net.distortion_head is not None
        pooled = net.pool(pictures()).detach()
        score = net.read(pooled)[0].sum()
        score.backward()
        assert (net.heads_in.weight.grad is not None) == bool(features), reads
        assert (net.distortion_head.attributes[0].weight.grad is not None) == bool(probs), reads
        said = net(pictures())
        torch.testing.assert_close(said.score, torch.sigmoid(net.read(net.pool(pictures()))[0]))


def test_a_config_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="regressor_reads: both needs a distortion head"):
        AttributeNetConfig(regressor_reads="both")
    with pytest.raises(ValueError, match="regressor_reads: expected features, attributes or both, got 'all'"):
        AttributeNetConfig(regressor_reads="all")  # type: ignore[arg-type]


def test_checkpoints_from_before_the_head_still_load(tmp_path: Path) -> None:
    net = small_net.build()
    config = {**dataclasses.asdict(net.config), "taps": list(net.config.taps)}
    del config["distortion_width"], config["regressor_reads"]
    path = tmp_path / "old.safetensors"
    checkpoint.save(path, net.state_dict(), architecture="AttributeNet", config=config, provenance={})
    assert load_with_provenance(path).model.config == net.config
    assert "jpeg" not in QualityReward(path).names
    with pytest.raises(ValueError, match=r"attribute_weights: expected names among score, .*noisiness, got jpeg"):
        QualityReward(path, attribute_weights={"jpeg": -1})


def test_a_reward_may_name_distortions_and_reaches_the_pixels(weights: Path, tmp_path: Path) -> None:
    batch = pictures().requires_grad_()
    plain = QualityReward(weights)
    said = plain.assess(batch)
    assert said.distortions is not None
    assert plain.names[6:] == DISTORTION_KEYS
    reward = QualityReward(weights, attribute_weights={"score": 1, "jpeg": -0.5, "contrast": 0.5})
    jpeg = said.distortions[:, DISTORTION_KEYS.index("jpeg")]
    torch.testing.assert_close(reward(batch), (said.score - 0.5 * jpeg + 0.5 * said.attribute("contrast")) / 2)
    only = QualityReward(weights, attribute_weights={"score": 0, "jpeg": -1})
    only(batch).sum().backward()
    assert batch.grad is not None
    assert batch.grad.isfinite().all()
    assert (batch.grad.flatten(1).abs().amax(1) > 0).all()


def test_files_get_their_strengths_too(weights: Path, tmp_path: Path) -> None:
    Image.fromarray((pictures(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    reward = QualityReward(weights)
    good, bad = reward.score_files([tmp_path / "a.png", tmp_path / "b.png"])
    assert good.distortions is not None
    told = reward.assess(pictures(1)).distortions
    assert told is not None
    assert good.distortions == pytest.approx(told[0].tolist(), abs=0.05)
    assert bad.distortions is None


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((128, 112), Image.Resampling.BICUBIC).save(root / f"cid22_{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory, run_recipe: Run) -> Path:
    root = tmp_path_factory.mktemp("head")
    init = small_net.save(root / "init.safetensors", origin="a test")
    arguments = ("training/distortion_head.py", "--photos", photo_folder, *HEAD, "--init", init, "--out", root / "out")
    done = run_recipe(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((root / "out" / "metrics.json").read_text())
    made = (root / "out" / "model.safetensors").read_bytes()
    (root / "out" / "statistics" / "train-0001.safetensors").unlink()  # as if killed before it
    (root / "out" / "model.safetensors").unlink()
    assert run_recipe(*arguments).returncode == 0
    assert (root / "out" / "model.safetensors").read_bytes() == made, "a run that goes on ends where it would have"
    return root


@pytest.mark.slow
def test_the_recipe_adds_a_head_and_changes_nothing_else(trained: Path) -> None:
    before, after = (load_with_provenance(trained / name) for name in ("init.safetensors", "out/model.safetensors"))
    old, new = before.model(pictures()), after.model(pictures())
    torch.testing.assert_close(new.score, old.score)
    torch.testing.assert_close(new.attributes, old.attributes)
    assert new.distortions is not None
    assert after.provenance["origin"] == "a test"
    record = after.provenance["distortion_head"]
    assert len(record["photos"]) == 8
    assert len(record["test_photos"]) == 2
    assert not set(record["photos"]) & set(record["test_photos"])
    assert {"rmse", "rmse_mean", "mean_average_precision", "protocol"} <= set(record["metrics"])


@pytest.mark.slow
def test_the_measure_looks_at_unseen_photos_alone(
    trained: Path, photo_folder: Path, tmp_path: Path, run_recipe: Run
) -> None:
    model = trained / "out" / "model.safetensors"
    arguments = ("evals/identification.py", "--photos", photo_folder, "--model", model, "--smoke")
    done = run_recipe(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["photos"]["photos"] == 2
    assert f"{found['photos']['mean_average_precision']:.4f}" in done.stdout
    words = ("--photos", photo_folder, "--out", tmp_path / "none", "--smoke", "--model", trained / "init.safetensors")
    done = run_recipe("evals/identification.py", *words)
    assert done.returncode == 1
    assert "has no head for them" in done.stderr


@pytest.mark.slow
def test_a_run_needs_one_start(photo_folder: Path, tmp_path: Path, run_recipe: Run) -> None:
    done = run_recipe("training/distortion_head.py", "--photos", photo_folder, "--out", tmp_path / "out")
    assert done.returncode != 0
    assert "--init, --trunk: expected one of them" in done.stderr
    assert "Traceback" not in done.stderr

"""The SqueezeNet 1.1 trunk against plain NumPy, and the packaged judge that stands on it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import attriqa
from attriqa import QualityReward
from attriqa.models import load_attribute_net
from attriqa.models.backbones import Backbone, load_squeezenet_trunk
from tests.support.trees import clive as clive_tree

Floats = NDArray[np.float64]
TAPS = tuple(range(1, 10))
CHANNELS = (64, 128, 128, 256, 256, 384, 384, 512, 512)
TRUNK = "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"


def written(path: Path, *, fires: tuple[int, ...] = tuple(range(2, 10)), first: int = 64) -> Path:
    """A file in Keras' layout with random weights."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:

        def layer(group: str, side: int, inside: int, outside: int) -> None:
            kernel = rng.normal(size=(side, side, inside, outside)) * np.sqrt(2 / (side * side * inside))
            file[f"{group}/uniform1"] = kernel.astype(np.float32)
            file[f"{group}/{group.split('/')[-1]}_b"] = (rng.normal(size=outside) * 0.1).astype(np.float32)

        layer("conv1", 3, 3, first)
        for fire in fires:
            inside, outside = CHANNELS[fire - 2], CHANNELS[fire - 1] // 2
            layer(f"fire{fire}/squeeze1x1/fire{fire}/squeeze1x1", 1, inside, outside // 4)
            layer(f"fire{fire}/expand1x1/fire{fire}/expand1x1", 1, outside // 4, outside)
            layer(f"fire{fire}/expand3x3/fire{fire}/expand3x3", 3, outside // 4, outside)
    return path


def plain(path: Path, image: Floats) -> list[Floats]:
    """The nine maps of (H, W, 3) RGB in [0, 1], each (h, w, C), from Keras' weights and layout."""
    weights: dict[str, Floats] = {}
    with h5py.File(path) as file:

        def take(name: str, item: Any) -> None:
            if hasattr(item, "shape"):
                layer = "/".join(name.split("/")[:2]) if name.startswith("fire") else "conv1"
                weights[f"{layer} {item.ndim}"] = np.array(item, np.float64)

        file.visititems(take)

    def conv(x: Floats, layer: str, stride: int = 1, pad: int = 0) -> Floats:
        kernel, bias = weights[f"{layer} 4"], weights[f"{layer} 1"]
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (0, 1))[::stride, ::stride]
        found: Floats = np.einsum("hwcij,ijco->hwo", patches, kernel, optimize=True) + bias
        return np.maximum(found, 0)

    x = conv(255 * image[..., ::-1] - [103.939, 116.779, 123.68], "conv1", stride=2)
    maps = [x]
    for fire in range(2, 10):
        if fire in (2, 4, 6):
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))[::2, ::2].max((3, 4))
        squeezed = conv(x, f"fire{fire}/squeeze1x1")
        x = np.concatenate([conv(squeezed, f"fire{fire}/expand1x1"), conv(squeezed, f"fire{fire}/expand3x3", pad=1)], 2)
        maps.append(x)
    return maps


def check(path: Path) -> None:
    """Sides with a rest under every pool: 75 -> 37 -> 18 -> 8 -> 3."""
    image = np.random.default_rng(1).random((75, 77, 3))
    backbone = Backbone("squeezenet1_1", TAPS).eval()
    load_squeezenet_trunk(backbone, path)
    with torch.no_grad():
        found = backbone(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None])
    assert backbone.channels == CHANNELS
    for ours, theirs in zip(found, plain(path, image), strict=True):
        expected = torch.tensor(theirs).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_the_trunk_is_keras(tmp_path: Path) -> None:
    check(written(tmp_path / "trunk.h5"))


@pytest.mark.shared_data
def test_the_published_trunk_is_keras(shared_data: Path) -> None:
    check(shared_data / "weights" / TRUNK)


def test_other_files_are_refused(tmp_path: Path) -> None:
    backbone = Backbone("squeezenet1_1", (9,))
    with pytest.raises(
        ValueError, match=r"lacking\.h5: expected the 50 tensors of squeezenet1_1.*stages\.7\.0\.expand1x1"
    ):
        load_squeezenet_trunk(backbone, written(tmp_path / "lacking.h5", fires=tuple(range(2, 9))))
    with pytest.raises(ValueError, match=r"wide\.h5: expected .*differing: \['conv1\.0\.bias', 'conv1\.0\.weight'"):
        load_squeezenet_trunk(backbone, written(tmp_path / "wide.h5", first=96, fires=tuple(range(2, 10))))
    (tmp_path / "text.h5").write_text("none")
    with pytest.raises(ValueError, match=r"text\.h5: not an HDF5 file"):
        load_squeezenet_trunk(backbone, tmp_path / "text.h5")
    with pytest.raises(ValueError, match="backbone: expected squeezenet1_1, got resnet18"):
        load_squeezenet_trunk(Backbone("resnet18", (1,)), tmp_path / "text.h5")
    with pytest.raises(ValueError, match="pretrained: squeezenet1_1 loads its weights from a file"):
        Backbone("squeezenet1_1", (9,), pretrained=True)


def test_a_missing_h5py_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"trunk\.h5: reading HDF5 needs h5py"):
        load_squeezenet_trunk(Backbone("squeezenet1_1", (9,)), tmp_path / "trunk.h5")


@pytest.mark.slow
def test_finetune_probes_it(tmp_path: Path, run_recipe: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    clive = clive_tree.build(tmp_path / "ChallengeDB_release", count=12)
    words = ["--data", f"clive={clive}", "--net", "squeezenet", "--mode", "probe", "--protocol", "all", "--smoke"]
    trunk = written(tmp_path / "trunk.h5")
    done = run_recipe("training/finetune.py", *words, "--trunk", trunk, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    net = load_attribute_net(tmp_path / "out" / "all" / "model.safetensors")
    started = Backbone("squeezenet1_1", TAPS)
    load_squeezenet_trunk(started, trunk)
    for ours, theirs in zip(net.backbone.parameters(), started.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # the checkpoint holds half precision
    wrong = run_recipe("training/finetune.py", *words, "--trunk", tmp_path / "no.h5", "--out", tmp_path / "other")
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith(f"--trunk: {tmp_path / 'no.h5'}: ")


# The judge.


def test_the_judge_is_inside_the_package_small_and_on_another_encoder() -> None:
    judge = load_attribute_net("judge")
    assert judge.config.backbone == "squeezenet1_1"
    path = Path(attriqa.__file__).parent / "weights" / "judge.safetensors"
    assert path.stat().st_size <= 3e6


def test_the_judge_prefers_photos_to_their_ruins(photos: list[NDArray[np.uint8]]) -> None:
    judge = QualityReward("judge", view="full")
    image = torch.tensor(photos[2][:256, :256]).permute(2, 0, 1)[None] / 255
    noisy = (image + 0.2 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    blurred = torch.nn.functional.interpolate(image[:, :, ::8, ::8], (256, 256), mode="bilinear")
    clean, *ruined = judge(torch.cat([image, noisy, blurred])).tolist()
    assert max(ruined) < clean - 0.1
    image.requires_grad_()
    (slope,) = torch.autograd.grad(judge(image).sum(), image)
    assert slope.isfinite().all()
    assert (slope != 0).float().mean() > 0.9

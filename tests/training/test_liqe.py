"""The parts of LIQE's training: data sets side by side, crops of the grid, joint batches, losses and rates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa.data import crops
from attriqa.data.batches import JointBatches
from attriqa.data.crops import stack
from attriqa.data.leaks import LeakError
from attriqa.data.protocol import make_plan
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.images import ImageError, read
from attriqa.models import checkpoint
from attriqa.models.liqe import LIQEConfig, Prediction, grid
from attriqa.training.folds import report
from attriqa.training.liqe import fields, grid_crops, losses, sets_of, started
from attriqa.training.losses import distortion_fidelity, quality_fidelity, scene_fidelity
from attriqa.training.mp_iqe import Targets
from attriqa.training.schedules import rate
from tests.support import clip_models
from tests.support.small_clip import pictures
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 10, 60, 50)
    exiqa_tree.kadid(root / "kadid", 5)
    lines = (f"Images/{i}.jpg\t{90 - i}\trealistic blur\tanimal\tplant\tinvalid" for i in range(4))
    (root / "clive_all_clip.txt").write_text("\n".join(lines) + "\n")
    return root


def predicted(count: int, seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    return Prediction(*(torch.rand(count, width, generator=generator).softmax(1) for width in (5, 9, 11)))


def test_sets_are_numbered_through_and_keep_what_is_known(tree: Path) -> None:
    plans = [make_plan(f"{name}={tree / name}", splits=2) for name in ("clive", "kadid")]
    sets = sets_of(plans, [[tree / "clive_all_clip.txt"], []])
    assert sets.starts == (0, 10)
    assert len(sets.paths) == len(sets.targets.mos) == 10 + len(plans[1].mos)
    assert sets.paths[10] == plans[1].dataset.rows[0].path
    assert sets.set_of(torch.tensor([0, 9, 10, 30])).tolist() == [0, 0, 1, 1]
    first = sets.targets.scenes[0]
    assert {list(SCENES)[i] for i in first.nonzero().flatten()} == {"animal", "plant"}
    assert not sets.targets.scenes[4:].any()
    assert list(DISTORTION_CLASSES)[int(sets.targets.distortions[0].argmax())] == "blur"
    assert sets.targets.distortions[10:].any(1).all(), "KADID-10k names its own"
    clive, kadid = sets.train(1)
    assert clive == plans[0].folds[1].train
    assert [number - 10 for number in kadid] == plans[1].folds[1].train


def test_a_data_set_given_twice_is_a_leak(tree: Path) -> None:
    plan = make_plan(f"clive={tree / 'clive'}", splits=1)
    with pytest.raises(LeakError, match="CLIVE and CLIVE: 10 test files are training files too"):
        sets_of([plan, plan], [[], []])
    other = make_plan(f"kadid={tree / 'kadid'}", splits=2)
    with pytest.raises(ValueError, match="expected data sets that are split alike"):
        sets_of([plan, other], [[], []])


def test_crops_are_of_the_grid_and_reach_all_of_it(tree: Path) -> None:
    paths = [tree / "clive" / "Images" / f"{i}.jpg" for i in range(3)]
    config, crop = LIQEConfig(stride=6), (32, 32)
    images = grid_crops(paths, crop, config, 5, seed=1)
    places = grid((50, 60), crop, config)
    seen: set[tuple[bool, tuple[int, int]]] = set()
    for epoch in range(20):
        patch = images[epoch, 1]
        assert (patch.image.shape, patch.image.dtype, patch.number) == ((5, 3, 32, 32), torch.uint8, 1)
        assert torch.equal(patch.image, images[epoch, 1].image)
        picture = (read(paths[1]) * 255).round().byte()
        for cut in patch.image:
            hits = [
                (flipped, (y, x))
                for flipped, whole_image in ((False, picture), (True, picture.flip(2)))
                for y, x in places
                if torch.equal(whole_image[:, y : y + 32, x : x + 32], cut)
            ]
            assert len(hits) == 1
            seen |= set(hits)
    assert {flipped for flipped, _ in seen} == {False, True}
    assert {place for _, place in seen} == set(places)
    assert not torch.equal(images[0, 1].image, grid_crops(paths, crop, config, 5, seed=2)[0, 1].image)


def test_images_that_there_is_room_for_are_read_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, taken = [tree / "clive" / "Images" / f"{i}.jpg" for i in range(3)], list[Path]()

    def noted(path: Path, **settings: Any) -> Tensor:
        taken.append(path)
        return read(path, **settings)

    monkeypatch.setattr(crops, "read", noted)
    bytes_of_one = 3 * 50 * 60
    images, afresh = (grid_crops(paths, (32, 32), LIQEConfig(stride=6), 4, keep=keep) for keep in (2 * bytes_of_one, 0))
    for epoch in range(4):
        for number in range(3):
            assert torch.equal(images[epoch, number].image, afresh[epoch, number].image)
    assert [taken.count(path) - 4 for path in paths] == [1, 1, 4]


def test_an_image_that_cannot_be_read_is_raised_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    batch = stack([grid_crops([tmp_path / "bad.png"], (32, 32), LIQEConfig(), 2)[0, 0]])
    with pytest.raises(ImageError, match=r"bad\.png"):
        batch.pixels(torch.device("cpu"))


def test_small_images_are_scaled_up_for_their_crops(tmp_path: Path) -> None:
    Image.new("RGB", (33, 70)).save(tmp_path / "small.png")
    assert grid_crops([tmp_path / "small.png"], (48, 48), LIQEConfig(), 3)[0, 0].image.shape == (3, 3, 48, 48)


def test_a_batch_has_its_share_of_every_set_whatever_the_processes() -> None:
    rows = [list(range(7)), list(range(7, 40))]
    lone = list(JointBatches(rows, (2, 4), 9, seed=3))
    assert len(lone) == 9
    for batch in lone:
        numbers = [number for _, number in batch]
        assert [number < 7 for number in numbers] == [True] * 2 + [False] * 4
    small = [number for batch in lone for _, number in batch if number < 7]
    assert len(set(small[:6])) == 6, "each image once before any comes again"
    assert {epoch for batch in lone for epoch, number in batch if number < 7} == {0, 1, 2}
    shares = [list(JointBatches(rows, (2, 4), 9, process=process, processes=2, seed=3)) for process in (0, 1)]
    for batch, one, two in zip(lone, *shares, strict=True):
        assert len(one) == len(two) == 3
        assert sorted(one + two) == sorted(batch)
    late = JointBatches(rows, (2, 4), 9, first=6, seed=3)
    assert list(late) == lone[6:]
    assert len(late) == 3
    assert late.numbers(6) == [number for _, number in lone[6]]
    with pytest.raises(ValueError, match="batch: expected a multiple of the 1 processes, at most the 7 images, got 8"):
        JointBatches(rows, (8, 4), 9)


def test_quality_is_compared_within_a_set_alone() -> None:
    found, sets = predicted(6), torch.tensor([0, 1, 0, 1, 1, 0])
    mos = torch.tensor([0.1, 0.9, 0.3, 0.2, 0.4, 0.8])
    scenes = torch.zeros(6, 9)
    scenes[0, [1, 4]] = 0.5
    distortions = torch.zeros(6, 11)
    distortions[2, 3] = 1
    quality, scene, distortion = losses(found, Targets(mos, scenes, distortions), sets, 2)
    parts = [quality_fidelity(found.quality[sets == k], mos[sets == k]) for k in (0, 1)]
    torch.testing.assert_close(quality, sum(parts, torch.tensor(0.0)) / 2)
    torch.testing.assert_close(scene, scene_fidelity(found.scenes[:1], (scenes[:1] > 0).float()))
    torch.testing.assert_close(distortion, distortion_fidelity(found.distortions[2:3], distortions[2:3]))
    bare = found._replace(scenes=torch.zeros(6, 0), distortions=torch.zeros(6, 0))
    assert losses(bare, Targets(mos, scenes, distortions), sets, 2)[1:].tolist() == [0, 0]


def test_the_rate_falls_and_rises_and_is_never_zero() -> None:
    """torch's CosineAnnealingLR of LIQE's code, which it steps once more where the rate is zero."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for epoch in range(30):
        if optimizer.param_groups[0]["lr"] < 1e-12:
            optimizer.step()
            schedule.step()
        assert rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()
    assert min(rate(epoch) for epoch in range(80)) > 0.09


def test_a_report_counts_what_is_known() -> None:
    found = predicted(12)
    mos = found.quality.tolist()
    scenes, distortions = torch.zeros(12, 9), torch.zeros(12, 11)
    for row in range(4):
        scenes[row, found.scenes[row].argmax()] = 1.0
    scenes[3] = scenes[3].roll(1)
    distortions[:5, :] = torch.nn.functional.one_hot(found.distortions[:5].argmax(1), 11).float()
    targets = Targets(torch.tensor(mos), scenes, distortions)
    entry = report(fields(found), mos, "split0", **targets.classes())
    assert entry["srocc"] == pytest.approx(1)
    assert (entry["scene_accuracy"], entry["scene_n"]) == (0.75, 4)
    assert (entry["distortion_accuracy"], entry["distortion_n"]) == (1.0, 5)
    assert fields(found)[0].tolist() == pytest.approx([(value - 1) / 4 for value in mos])


def test_it_starts_on_the_clip_of_another_model(tmp_path: Path) -> None:
    exiqa, liqe = clip_models.tuned_exiqa(logit_scale=7.0), clip_models.liqe(logit_scale=20.0)
    exiqa.save(tmp_path / "exiqa.safetensors", {})
    liqe.save(tmp_path / "liqe.safetensors", {})
    few = LIQEConfig(scenes=("animal",), distortions=())
    for start, name, scale in ((exiqa, "exiqa", 7.0), (liqe, "liqe", 20.0)):
        net = started(tmp_path / f"{name}.safetensors", few).eval()
        assert net.config.logit_scale == scale
        for key, value in start.clip.state_dict().items():
            torch.testing.assert_close(net.clip.state_dict()[key], value, rtol=0, atol=2e-3)
        scores: Tensor = net(pictures()).score
        assert scores.isfinite().all()
    checkpoint.save(tmp_path / "x.safetensors", {}, architecture="Other", config={}, provenance={})
    with pytest.raises(ValueError, match="expected a checkpoint of LIQE, got Other"):
        started(tmp_path / "x.safetensors", few)

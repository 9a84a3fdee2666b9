"""The parts of MP-IQE's training: its losses, what is known of images, crops, where a model starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attriqa.data.crops import fixed_crops, stack, training_crops
from attriqa.data.protocol import make_plan
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.images import ImageError, read
from attriqa.models import checkpoint, exiqa, mp_iqe
from attriqa.models.clip.towers import build_clip
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.models.mp_iqe import KADID_NAMES, MPIQEConfig, Reading
from attriqa.training.folds import report
from attriqa.training.mp_iqe import Targets, losses, started, targets_of
from tests.support import small_clip
from tests.support.clip_recipes import differing
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rated photos, LIQE's annotations of 20 of them."""
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 24, 72, 60)
    lines = []
    for i in range(20):
        rank, second = i * 5 % 24, "night" if i % 2 else "invalid"
        kind = "realistic blur" if rank > 8 else "other realistic"
        lines.append(f"Images/{i}.bmp\t{90 - 3 * rank:.6f}\t{kind}\thuman\t{second}\tinvalid")
    (root / "clive_all_clip.txt").write_text("\n".join(lines))
    return root


# Losses


def reading(rows: int = 5, seed: int = 0) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    return Reading(*(torch.randn(rows, *width, generator=generator) for width in ((), (9,), (11,))))


def targets() -> Targets:
    scenes, kinds = torch.zeros(5, 9), torch.zeros(5, 11)
    for row, among in enumerate([(0,), (1, 2), (3, 4, 5), (8,), ()]):
        scenes[row, list(among)] = 1 / max(1, len(among))
    kinds[range(4), [0, 10, 3, 3]] = 1
    return Targets(torch.linspace(0, 1, 5), scenes, kinds)


@pytest.mark.parametrize("literal", [False, True])
def test_losses_are_equations_9_11_15_and_16(literal: bool) -> None:
    said, true = reading(), targets()
    expected = {"scene": 0.0, "distortion": 0.0, "score": 0.0}
    for row in range(5):
        for name, logits, target in zip(("scene", "distortion"), said[1:], true[1:], strict=True):
            p = logits[row].exp() / logits[row].exp().sum()
            share = len(p) if literal else 1
            expected[name] -= sum(float(y * q.log()) for y, q in zip(target[row], p, strict=True)) / share / 5
        gap = abs(float(said.score[row] - true.mos[row]))
        expected["score"] += (0.5 * gap**2 if gap < 1 else gap - 0.5) / 5
    found = losses(said, true, distortion_weight=2.0, score_weight=0.3, literal_norm=literal)
    for name, value in expected.items():
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-5), name
    total = expected["scene"] + 2 * expected["distortion"] + 0.3 * expected["score"]
    assert found.total.item() == pytest.approx(total, rel=1e-5)


def test_unlabelled_images_teach_the_score_alone() -> None:
    said = Reading(*(field.requires_grad_() for field in reading()))
    nothing = Targets(targets().mos, torch.zeros(5, 9), torch.zeros(5, 11))
    found = losses(said, nothing)
    found.total.backward()
    assert found.scene == found.distortion == 0
    assert found.total.item() == pytest.approx(0.5 * F.smooth_l1_loss(said.score, nothing.mos).item())
    assert said.score.grad is not None
    for field in (said.scenes, said.distortions):
        assert field.grad is not None
        assert not field.grad.any()
    empty = Reading(said.score, torch.zeros(5, 0), torch.zeros(5, 0))
    without = losses(empty, Targets(nothing.mos, torch.zeros(5, 0), torch.zeros(5, 0)), literal_norm=True)
    assert without.total.item() == pytest.approx(found.total.item())


def test_a_batch_in_two_halves_has_their_mean_loss() -> None:
    """As processes share a batch, also where only some of its images are labelled."""
    said, true = reading(4), targets().rows([0, 1, 2, 4])
    halves = [
        losses(Reading(*(field[part] for field in said)), true.rows(range(4)[part]))
        for part in (slice(0, 2), slice(2, 4))
    ]
    for whole, *parts in zip(losses(said, true), *halves, strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean())


# What is known of images


def test_targets_come_from_annotations(tree: Path) -> None:
    plan = make_plan(f"clive={tree / 'clive'}", splits=1)
    found = targets_of(plan, MPIQEConfig(), [tree / "clive_all_clip.txt"])
    assert found.labelled() == {"scenes": 20, "distortions": 20}
    human, night = (list(SCENES).index(name) for name in ("human", "night"))
    for row, scenes, kinds in zip(plan.dataset.rows, found.scenes, found.distortions, strict=True):
        number = int(row.path.stem)
        expected = torch.zeros(9)
        if number < 20:
            expected[[human, night] if number % 2 else [human]] = 0.5 if number % 2 else 1.0
            assert kinds[list(DISTORTION_CLASSES).index("blur" if number * 5 % 24 > 8 else "other")] == 1
        assert torch.equal(scenes, expected)
        assert kinds.sum() == (number < 20)
    assert torch.equal(found.mos, plan.mos)
    assert found.digest() != found._replace(mos=found.mos + 1).digest()
    bare = targets_of(plan, MPIQEConfig(), [])
    assert bare.labelled() == {"scenes": 0, "distortions": 0}
    shapes = targets_of(plan, MPIQEConfig(scenes=(), distortions=()), [tree / "clive_all_clip.txt"])
    assert (shapes.scenes.shape, shapes.distortions.shape) == ((24, 0), (24, 0))


def test_annotations_of_another_data_set_are_refused(tree: Path, tmp_path: Path) -> None:
    plan = make_plan(f"clive={tree / 'clive'}", splits=1)
    (tmp_path / "a.txt").write_text("Images/none.bmp\t3\tlens\thuman\tinvalid\tinvalid")
    with pytest.raises(
        ValueError, match=r"--labels: expected annotations of CLIVE, got none of its images in .*a\.txt"
    ):
        targets_of(plan, MPIQEConfig(), [tmp_path / "a.txt"])
    rows = [f"x/{i}.jpg\t{i}\tlens\thuman\tinvalid\tinvalid" for i in range(24)]
    (tmp_path / "b.txt").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"of CLIVE, got scores that do not follow its own \(SROCC -?0\.\d\d over 24"):
        targets_of(plan, MPIQEConfig(), [tmp_path / "b.txt"])


def test_a_data_set_that_names_its_distortions_needs_no_annotations(tmp_path: Path) -> None:
    plan = make_plan(f"kadid={exiqa_tree.kadid(tmp_path / 'kadid', 5)}", splits=1)
    eleven, all_of_them = (
        targets_of(plan, MPIQEConfig(distortions=names), [])
        for names in (tuple(DISTORTION_CLASSES.values()), KADID_NAMES)
    )
    count = len(plan.dataset.rows)
    assert eleven.labelled() == all_of_them.labelled() == {"scenes": 0, "distortions": count}
    keys = [row.distortion for row in plan.dataset.rows]
    for name, key in (("blur", "gaussian_blur"), ("underexposure", "darken"), ("noise", "white_noise")):
        rows = [number for number, other in enumerate(keys) if other == key]
        assert rows
        assert eleven.distortions[rows, list(DISTORTION_CLASSES).index(name)].all()
    with pytest.raises(ValueError, match="config: expected the classes of MP-IQE or of KADID-10k"):
        targets_of(plan, MPIQEConfig(distortions=("fog",)), [])


# Crops


def test_training_crops_are_parts_of_their_images(tree: Path) -> None:
    paths = sorted((tree / "clive" / "Images").iterdir())[:3]
    crops = training_crops(paths, (48, 48), seed=1)
    drawn = [crops[epoch, number] for epoch in range(4) for number in range(6)]
    assert [example.number for example in drawn] == [0, 1, 2] * 8
    flips = []
    for example in drawn:
        image = (read(paths[example.number]) * 255).round().to(torch.uint8)
        cells = image.unfold(1, 48, 1).unfold(2, 48, 1).permute(1, 2, 0, 3, 4)
        found = [bool((cells == cut).flatten(2).all(2).any()) for cut in (example.image[0], example.image[0].flip(2))]
        assert any(found)
        flips.append(found[0])
    assert 3 < sum(flips) < 21
    assert len({example.image.numpy().tobytes() for example in drawn}) > 20
    again = training_crops(paths, (48, 48), seed=1)
    assert all(torch.equal(again[2, n].image, crops[2, n].image) for n in range(3))
    assert not torch.equal(training_crops(paths, (48, 48), seed=2)[0, 0].image, crops[0, 0].image)
    assert training_crops(paths, (96, 96), seed=1)[0, 0].image.shape == (1, 3, 96, 96)


def test_fixed_crops_are_those_of_the_model(tree: Path) -> None:
    paths = sorted((tree / "clive" / "Images").iterdir())[:2]
    model = mp_iqe.MPIQE(MPIQEConfig(windows=3, crops=4, crop_seed=7), tiny_towers())
    images = fixed_crops(paths, (48, 48), 4, seed=7)
    batch = stack([images[-1, 0], images[5, 1]])
    assert batch.number.tolist() == [0, 1]
    seen = torch.cat([model.look(read(path)[None])[0] for path in paths])
    torch.testing.assert_close(batch.pixels(CPU), seen, rtol=0, atol=1e-6)
    assert fixed_crops(paths, (96, 96), 4)[-1, 0].image.shape == (4, 3, 96, 96)


@pytest.mark.parametrize("size", [(72, 60), (600, 40)])
def test_fixed_crops_of_reduced_files_are_those_of_the_model(tmp_path: Path, size: tuple[int, int]) -> None:
    """Pillow resizes while it reads: the same, up to rounding, of panoramas, too."""
    clive_tree.picture(3, *size).save(tmp_path / "a.png")
    model = mp_iqe.MPIQE(MPIQEConfig(windows=3, crops=4, shorter_edge=52), tiny_towers())
    assert model.reads_at == 52
    files = fixed_crops([tmp_path / "a.png"], (48, 48), 4, shorter_edge=52)[-1, 0].pixels(CPU)
    torch.testing.assert_close(files, model.look(read(tmp_path / "a.png")[None])[0], rtol=0, atol=3 / 255)


def test_a_bad_file_is_named_when_its_batch_is_used(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    paths = [next((tree / "clive" / "Images").iterdir()), tmp_path / "bad.png"]
    for crops in (training_crops(paths, (48, 48)), fixed_crops(paths, (48, 48), 3)):
        with pytest.raises(ImageError, match=r"bad\.png: a file of 0 bytes"):
            stack([crops[0, 0], crops[0, 1]]).pixels(CPU)


def tiny_towers() -> Any:
    return build_clip({"model_cfg": small_clip.vit(32)}, name="tiny")


# Where a model starts


def test_a_model_starts_from_the_clip_of_exiqa_or_goes_on(tmp_path: Path) -> None:
    whole = ExIQA(ExIQAConfig(tune="all", prompts=0, prompt_kind="none", logit_scale=9.0), tiny_towers())
    with torch.no_grad():
        whole.clip.visual.proj.add_(0.1)
    whole.save(tmp_path / "exiqa.safetensors", {})
    config = MPIQEConfig(windows=3, layers=1)
    first = started(tmp_path / "exiqa.safetensors", config)
    kept = exiqa.load(tmp_path / "exiqa.safetensors").clip.state_dict()
    assert not differing(dict(first.clip.state_dict()), dict(kept))
    assert not first.has_score
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    first.save(tmp_path / "mp.safetensors", {})
    before = mp_iqe.load(tmp_path / "mp.safetensors").state_dict()
    assert not differing(started(tmp_path / "mp.safetensors", config, seed=4).state_dict(), before)
    other = MPIQEConfig(windows=3, layers=2, context=3, distortions=KADID_NAMES)
    changed = started(tmp_path / "mp.safetensors", other, seed=4).state_dict()
    same = {name for name in before if name in changed and torch.equal(changed[name], before[name])}
    assert set(before) - same == {"contexts.scenes.context", "contexts.distortions.context"}
    assert {name.split(".")[0] for name in set(changed) - set(before)} == {"decoder"}
    with pytest.raises(checkpoint.CheckpointError, match="expected a checkpoint of MPIQE, got AttributeNet"):
        started(Path("attriqa/weights/default.safetensors"), config)


# What a test says


def test_a_report_says_how_often_classes_are_right() -> None:
    true = targets()
    scenes, kinds = torch.zeros(5, 9), torch.zeros(5, 11)
    scenes[range(5), [0, 2, 6, 7, 0]] = 1  # right, right (one of two), wrong, wrong, unlabelled
    kinds[range(5), [0, 1, 3, 3, 3]] = 1
    mos = [1.0, 2.0, 3.0, 4.0, 5.0]
    said = (torch.tensor([0.1, 0.2, 0.35, 0.4, 0.5]), scenes, kinds)
    found = report(said, mos, "split0", **true.classes())
    assert found["srocc"] == pytest.approx(1)
    assert (found["scene_accuracy"], found["scene_n"]) == (0.5, 4)
    assert (found["distortion_accuracy"], found["distortion_n"]) == (0.75, 4)
    assert "scene_n" not in report(said, mos, "split0")
    assert "scene_n" not in report((said[0], torch.zeros(5, 0), kinds), mos, "split0", **true.classes())
    with pytest.raises(ValueError, match=r"split0, test on x: predictions: all 5 are 0\.5"):
        report([torch.full((5,), 0.5)], mos, "split0, test on x")

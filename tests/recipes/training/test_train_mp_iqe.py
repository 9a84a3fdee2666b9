"""training/train_mp_iqe.py in this process where one is enough, and as users run it (slow); what it is made of."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from attriqa.data.batches import GlobalBatches
from attriqa.data.crops import JudgedCrops, TrainingCrops, stack_patches
from attriqa.data.protocol import make_plan
from attriqa.distortions.classes import DISTORTION_CLASSES, SCENES
from attriqa.evaluation import metrics
from attriqa.images import ImageError, read
from attriqa.models import checkpoint, exiqa, mp_iqe
from attriqa.models.clip.towers import load_clip
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.models.mp_iqe import KADID_NAMES, MPIQEConfig, Reading
from attriqa.training.mp_iqe import Predicted, Targets, losses, report, started, targets_of
from tests.support import clip_recipes, small_clip
from tests.support.clip_recipes import Run, cut_off, differing, on_processes, result, steps_of, weights
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree

VIT = small_clip.vit(32)
SHAPE = ("--windows", 3, "--layers", 1, "--heads", 4, "--workers", 0)
TRAIN = (*SHAPE, "--crops", 2, "--splits", 1, "--epochs", 2, "--warmup", 1, "--lr", 1e-3, "--batch", 16)

pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # scores after a few steps


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rated photos, LIQE's annotations of 20 of them, a CLIP's configuration."""
    root = tmp_path_factory.mktemp("tree")
    clive_tree.build(root / "clive", 24, 72, 60)
    lines = []
    for i in range(20):
        rank, second = i * 5 % 24, "night" if i % 2 else "invalid"
        kind = "realistic blur" if rank > 8 else "other realistic"
        lines.append(f"Images/{i}.bmp\t{90 - 3 * rank:.6f}\t{kind}\thuman\t{second}\tinvalid")
    (root / "clive_all_clip.txt").write_text("\n".join(lines))
    (root / "vit.json").write_text(json.dumps(VIT))
    return root


@pytest.fixture
def recipe() -> Iterator[ModuleType]:
    with clip_recipes.loaded("train_mp_iqe") as module:
        yield module


@pytest.fixture
def run(recipe: ModuleType, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(name, *flags)`` -> its folder; by default on the photos, with a random CLIP."""
    intervals = metrics.intervals  # with as many draws as users get, a second each time
    few = {"resamples": 20}
    monkeypatch.setattr(metrics, "intervals", lambda *args, **settings: intervals(*args, **settings | few))
    return clip_recipes.runner(recipe, tmp_path, data=f"clive={tree / 'clive'}", clip=tree / "vit.json")


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
    kinds = (tuple(DISTORTION_CLASSES.values()), KADID_NAMES)
    eleven, all_of_them = (targets_of(plan, MPIQEConfig(distortions=names), []) for names in kinds)
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
    crops = TrainingCrops(paths, (48, 48), seed=1)
    drawn = [crops[epoch, number] for epoch in range(4) for number in range(6)]
    assert [patch.number for patch in drawn] == [0, 1, 2] * 8
    flips = []
    for patch in drawn:
        image = (read(paths[patch.number]) * 255).round().to(torch.uint8)
        cells = image.unfold(1, 48, 1).unfold(2, 48, 1).permute(1, 2, 0, 3, 4)
        found = [bool((cells == cut).flatten(2).all(2).any()) for cut in (patch.image[0], patch.image[0].flip(2))]
        assert any(found)
        flips.append(found[0])
    assert 3 < sum(flips) < 21
    assert len({patch.image.numpy().tobytes() for patch in drawn}) > 20
    again = TrainingCrops(paths, (48, 48), seed=1)
    assert all(torch.equal(again[2, n].image, crops[2, n].image) for n in range(3))
    assert not torch.equal(TrainingCrops(paths, (48, 48), seed=2)[0, 0].image, crops[0, 0].image)
    small = TrainingCrops(paths, (96, 96), seed=1)[0, 0].image
    assert small.shape == (1, 3, 96, 96)


def test_judged_crops_are_those_of_the_model(tree: Path) -> None:
    paths = sorted((tree / "clive" / "Images").iterdir())[:2]
    model = mp_iqe.MPIQE(MPIQEConfig(windows=3, crops=4, crop_seed=7), tiny_towers(tree))
    images = JudgedCrops(paths, (48, 48), 4, seed=7)
    batch = stack_patches([images[0], images[1]])
    assert batch.number.tolist() == [0, 1]
    seen = torch.cat([model.look(read(path)[None])[0] for path in paths])
    torch.testing.assert_close(batch.pixels(torch.device("cpu")), seen, rtol=0, atol=1e-6)
    assert JudgedCrops(paths, (96, 96), 4)[0].image.shape == (4, 3, 96, 96)


@pytest.mark.parametrize("size", [(72, 60), (600, 40)])
def test_judged_crops_of_reduced_files_are_those_of_the_model(
    tree: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Pillow resizes while it reads: the same, up to rounding, of panoramas, too."""
    clive_tree.picture(3, *size).save(tmp_path / "a.png")
    model = mp_iqe.MPIQE(MPIQEConfig(windows=3, crops=4, shorter_edge=52), tiny_towers(tree))
    assert model.reads_at == 52
    files = JudgedCrops([tmp_path / "a.png"], (48, 48), 4, shorter_edge=52)[0].pixels(torch.device("cpu"))
    torch.testing.assert_close(files, model.look(read(tmp_path / "a.png")[None])[0], rtol=0, atol=3 / 255)


def test_a_bad_file_is_named_when_its_batch_is_used(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    good = next((tree / "clive" / "Images").iterdir())
    for batch in (
        stack_patches([TrainingCrops([good, tmp_path / "bad.png"], (48, 48))[0, n] for n in (0, 1)]),
        stack_patches([JudgedCrops([good, tmp_path / "bad.png"], (48, 48), 3)[n] for n in (0, 1)]),
    ):
        with pytest.raises(ImageError, match=r"bad\.png: a file of 0 bytes"):
            batch.pixels(torch.device("cpu"))


def tiny_towers(tree: Path) -> Any:
    return load_clip(str(tree / "vit.json"))


# Where a model starts


def test_a_model_starts_from_the_clip_of_exiqa_or_goes_on(tree: Path, tmp_path: Path) -> None:
    whole = ExIQA(ExIQAConfig(tune="all", prompts=0, prompt_kind="none", logit_scale=9.0), tiny_towers(tree))
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


def test_a_start_that_knows_the_test_side_is_refused(run: Run, tree: Path, tmp_path: Path) -> None:
    words = (*TRAIN, "--epochs", 1, "--warmup", 0)
    seed = run("first", *words) / "split0" / "model.safetensors"
    start = ("--init", seed)
    again = run("again", *words, *start) / "split0" / "model.safetensors"
    assert checkpoint.load(again).provenance["init"] == checkpoint.load(seed).provenance
    for name in (seed, again):
        message = rf"--init: {name} has learnt from \d of the 5 files that split1 is tested on"
        with pytest.raises(SystemExit, match=message):
            run("other", *words, "--init", name, "--splits", 2)
    assert not (tmp_path / "other").exists()


# What a test says


def test_a_report_says_how_often_classes_are_right() -> None:
    true = targets()
    scenes, kinds = torch.zeros(5, 9), torch.zeros(5, 11)
    scenes[range(5), [0, 2, 6, 7, 0]] = 1  # right, right (one of two), wrong, wrong, unlabelled
    kinds[range(5), [0, 1, 3, 3, 3]] = 1
    said = Predicted(torch.arange(5), torch.tensor([0.1, 0.2, 0.35, 0.4, 0.5]), scenes, kinds)
    found = report(said, [1.0, 2.0, 3.0, 4.0, 5.0], true)
    assert found["srocc"] == pytest.approx(1)
    assert (found["scene_accuracy"], found["scene_n"]) == (0.5, 4)
    assert (found["distortion_accuracy"], found["distortion_n"]) == (0.75, 4)
    assert "scene_n" not in report(said, [1.0, 2.0, 3.0, 4.0, 5.0])


# The recipe


@pytest.mark.slow
def test_a_run_learns_what_it_is_shown_and_writes_what_it_prints(
    run: Run, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("--labels", tree / "clive_all_clip.txt", "--test", f"clive={clive_tree.build(tree / 'other', 9, 60, 60)}")
    out = run(
        "out", *TRAIN, *labels, "--epochs", 12, "--lr", 3e-3, "--batch", 8, "--score-weight", 20, "--temperature", 0.1
    )
    found, text = result(out), capsys.readouterr().out
    (fold,) = found["folds"]
    assert (fold["n_train"], fold["steps"], found["test"]["n"], found["CLIVE"]["n"]) == (19, 12 * 4, 5, 9)
    assert found["labelled"] == {"scenes": 20, "distortions": 20}
    assert [row["epoch"] for row in fold["history"]] == list(range(1, 13))
    for name in ("total", "scene", "distortion", "score"):
        assert fold["history"][-1][name] < 0.9 * fold["history"][0][name], name
    for name in ("test", "CLIVE"):
        assert f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in found[name].items()) in text
    assert "24 images, 20 with scenes, 20 with distortions" in text
    assert sorted(path.name for path in (out / "split0").iterdir()) == ["metrics.json", "model.safetensors"]


def test_its_checkpoint_gives_the_scores_it_reports(run: Run, tree: Path, tmp_path: Path) -> None:
    out = run("out", *TRAIN, "--labels", tree / "clive_all_clip.txt", "--save-every", 2)
    path = out / "split0" / "model.safetensors"
    net = mp_iqe.load(path)
    assert net.has_score
    plan = make_plan(f"clive={tree / 'clive'}", splits=1)
    paths, test = plan.test_paths(plan.folds[0]), result(out)["test"]
    with torch.no_grad():
        scores = torch.cat([net(read(path)[None]).score for path in paths])
    mos = [plan.dataset.rows[i].mos for i in plan.folds[0].test]
    assert metrics.plcc(scores.tolist(), mos) == pytest.approx(test["plcc"], abs=0.02)
    saved = checkpoint.load(path)
    assert saved.provenance["metrics"] == json.loads((out / "split0" / "metrics.json").read_text())
    for secret in (str(tmp_path), str(tree)):
        assert secret not in json.dumps([saved.provenance, saved.config])


def test_towers_stay_as_they_are_and_out_of_the_file(run: Run, tmp_path: Path) -> None:
    name, tag = small_clip.tagged(tmp_path / "clip", "attriqa-small-towers", VIT)
    out = run("out", "--clip", f"{name}:{tag}", *TRAIN)
    kept = weights(out)
    assert not [key for key in kept if key.startswith("clip.")], "open_clip has them"
    net = mp_iqe.load(out / "split0" / "model.safetensors")
    assert differing(dict(net.clip.state_dict()), dict(load_clip(name, tag).model.state_dict())) == set()
    other = weights(run("other", "--clip", f"{name}:{tag}", *TRAIN, "--seed", 1))
    assert differing(kept, other) == set(kept)


@pytest.mark.slow
def test_ablations_and_shares_of_the_data(run: Run, tree: Path) -> None:
    labels = ("--labels", tree / "clive_all_clip.txt")
    out = run("a", *TRAIN, *labels, "--no-scenes", "--prompt-kind", "none", "--fraction", 0.4, "--batch", 8)
    assert "contexts.scenes.context" not in weights(out)
    assert "prompts.prompts" not in weights(out)
    (fold,) = result(out)["folds"]
    assert fold["n_train"] == 8  # of 19
    assert fold["labelled"]["scenes"] == 0 < fold["labelled"]["distortions"]
    assert fold["history"][0]["scene"] == 0 < fold["history"][0]["distortion"]
    out = run("b", *TRAIN, *labels, "--distortions", "none", "--prompt-kind", "first", "--context", 3, "--prompts", 2)
    assert weights(out)["prompts.prompts"].shape == (1, 2, 32)
    assert weights(out)["contexts.scenes.context"].shape == (3, 16)
    assert "contexts.distortions.context" not in weights(out)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_very_same_weights(
    run: Run, recipe: ModuleType, tree: Path, tmp_path: Path
) -> None:
    flags = (*TRAIN, "--labels", tree / "clive_all_clip.txt", "--batch", 8, "--save-every", 3, "--log-every", 2)
    whole = run("whole", *flags)
    cut_off(recipe, run, 5, "out", *flags)
    assert not (tmp_path / "out" / "split0" / "model.safetensors").exists()
    with pytest.raises(SystemExit, match=r"holds a run with another configuration .*lr"):
        run("out", *flags, "--lr", 2e-3)
    with steps_of(recipe) as taken:
        out = run("out", *flags)
    assert taken == [3, 4, 5, 6, 7]
    assert differing(weights(out), weights(whole)) == set()
    assert result(out) == result(whole)
    before = (out / "split0" / "metrics.json").stat().st_mtime_ns
    run("out", *flags)
    assert (out / "split0" / "metrics.json").stat().st_mtime_ns == before, "nothing is done twice"


def test_a_loss_that_is_not_a_number_ends_the_run(
    run: Run, recipe: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[None] = []

    def losing(*args: Any, **settings: Any) -> Any:
        found = losses(*args, **settings)
        calls.append(None)
        return found._replace(total=found.total * float("nan")) if len(calls) == 4 else found

    monkeypatch.setattr(recipe, "losses", losing)
    with pytest.raises(SystemExit, match=r"the loss is nan at step 3; .*bad_batch\.json names its images"):
        run("out", *TRAIN, "--batch", 8, "--log-every", 1, "--save-every", 3)
    bad = json.loads((tmp_path / "out" / "split0" / "bad_batch.json").read_text())
    plan = make_plan(f"clive={tree / 'clive'}", splits=1)
    names = [path.name for path in plan.train_paths(plan.folds[0])]
    numbers = GlobalBatches(np.arange(38), 8, 8).whole(3)[1]
    assert bad["files"] == [names[int(number) % 19] for number in numbers]
    state = load_file(tmp_path / "out" / "split0" / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values()), "the checkpoint is from before it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr", 0.0), "split0: predictions: all 5 are 0.5; a correlation with a constant is undefined"),
        (("--clip", "ViT-B-16"), "pretrained: expected a checkpoint file or a tag of ViT-B-16"),
        (("--data", "koniq=nowhere"), "koniq10k_distributions_sets.csv: not found"),
        (("--labels", "nowhere.txt"), "nowhere.txt"),
        (("--init", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--windows", 7), "windows: expected at most 3, the patches on a side, got 7"),
        (("--context", 40), "context: expected at most 28 in texts of 32 tokens, got 40"),
        (("--fraction", 0.0), r"fraction: expected a number within \(0, 1\], got 0.0"),
        (("--batch", 600), "batch: expected a multiple of the 1 processes, at most the 38 images, got 600"),
        (("--tracker", "swanlab"), "--tracker: expected one that is installed"),
    ],
)
def test_what_cannot_be_run_is_refused(run: Run, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run("out", *TRAIN, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "clive=x"), "--clip, --clip-config, --init: expected one of them"),
        (("--data", "clive=x", "--clip", "y", "--init", "z"), "--clip, --clip-config, --init: expected one of them"),
        (("--data", "clive=x", "--clip", "y", "--epochs", "0"), "--epochs: expected at least 1, got 0"),
        (
            ("--data", "clive=x", "--clip", "y", "--warmup", "30"),
            "--warmup: expected 0 to 29 of the 30 epochs, got 30",
        ),
        (("--clip", "y"), "the following arguments are required: --data"),
    ],
)
def test_wrong_flags_are_refused(
    recipe: ModuleType, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in clip_recipes.refusal(recipe, tmp_path / "out", capsys, flags)


def test_the_papers_numbers_are_the_defaults(recipe: ModuleType) -> None:
    def numbers(data: str, **values: Any) -> tuple[Any, ...]:
        config = recipe.settled(recipe.Config(data=data, clip="c", **values))
        return config.batch, config.distortion_weight, config.score_weight

    assert numbers("clive=x") == numbers("koniq=x") == numbers("kadid=x") == (64, 1.0, 0.5)
    assert numbers("LIVE=x") == numbers("csiq=x") == (32, 1.0, 0.1)
    assert numbers("bid=x") == (32, 1.0, 0.5)
    assert numbers("live=x", batch=5, score_weight=0.0) == (5, 1.0, 0.0)
    config = recipe.settled(recipe.Config(data="clive=x", clip="c"))
    assert (config.epochs, config.warmup, config.lr, config.weight_decay, config.splits) == (30, 5, 3e-5, 0, 10)
    shape = recipe.shape_of(config)
    assert shape == MPIQEConfig()
    assert (shape.context, shape.prompts, shape.prompt_kind, shape.layers, shape.crops) == (8, 4, "deep", 3, 8)
    assert recipe.settled(recipe.Config(data="clive=x", clip="c", prompt_kind="none")).prompts == 0
    assert recipe.shape_of(recipe.Config(data="x", clip="c", distortions="kadid")).distortions == KADID_NAMES


@pytest.mark.slow
def test_the_smoke_size_runs_as_users_run_it(
    run_recipe: Callable[..., subprocess.CompletedProcess[str]], tree: Path, tmp_path: Path
) -> None:
    done = run_recipe(
        "training/train_mp_iqe.py", "--smoke", "--data", f"clive={tree / 'clive'}", "--clip-config",
        "examples/small_clip.json", "--labels", tree / "clive_all_clip.txt", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert result(tmp_path / "out")["test"]["n"] == 5
    assert "in-domain: CLIVE" in done.stdout


@pytest.mark.slow
def test_a_run_killed_by_the_system_ends_with_the_very_same_weights(tree: Path, tmp_path: Path) -> None:
    flags = ["--data", f"clive={tree / 'clive'}", "--clip-config", tree / "vit.json", *TRAIN, "--epochs", 10]
    flags += ["--workers", 1, "--batch", 4, "--save-every", 3]
    clip_recipes.whole_and_killed("train_mp_iqe", tmp_path, flags, steps=90)
    assert differing(weights(tmp_path / "killed"), weights(tmp_path / "whole")) == set()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tree: Path, tmp_path: Path) -> None:
    flags = ["--data", f"clive={tree / 'clive'}", "--clip-config", tree / "vit.json", *TRAIN]
    flags += ["--labels", tree / "clive_all_clip.txt"]
    outs = [on_processes("train_mp_iqe", processes, tmp_path / str(processes), flags) for processes in (1, 2)]
    one, two = (result(out)["folds"][0] for out in outs)
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert one["tests"]["test"]["plcc"] == pytest.approx(two["tests"]["test"]["plcc"], abs=1e-2)

"""What every recipe that trains in steps promises: it goes on where it was cut off, stops at NaN, names what is wrong.

In this process where one is enough, and as users run them (slow).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from attriqa import load
from attriqa.models import checkpoint
from attriqa.models.clip.towers import clip_of
from attriqa.training import folds
from attriqa.training.loop import loader
from tests.support import small_clip
from tests.support.clip_recipes import VIT, Recipe, differing, model_of, result, watched_steps, weights
from tests.support.trees import clive as clive_tree
from tests.support.trees import unlabelled as unlabelled_tree

pytestmark = pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")  # few images, hardly trained
SAVED = ("--workers", 0, "--log-every", 3, "--save-every", 2)
PHOTOS = ("--photo-pattern", "train_*", "--test-pattern", "test_*", "--single-passes", 1, "--crop", 48, "--passes", 7)
STEPS = 6


class Case(NamedTuple):
    """Flags of a run of six steps, and how near two processes come to the weights of one."""

    flags: tuple[object, ...]
    two: tuple[object, ...] = ()  # further flags, of that comparison
    apart: float | None = None  # absolute, beside 1e-3 relative; None: Adam amplifies rounding


CASES = {
    "train_clip_iqa": Case(
        ("--splits", 1, "--crop", 48, 48, "--batch", 12, "--epochs", 3, "--optimizer", "adam", "--lr", 0.02),
        ("--optimizer", "sgd"),
        1e-4,
    ),
    "train_exiqa": Case(
        ("--distortions", "gaussian_blur", "white_noise", "darken", "--batch", 20, "--regressor-epochs", 5, "--tune",
         "all", "--lr", 1e-3, "--weight-lr", 0.01, "--epochs", 3, "--tests", 3, *PHOTOS, "--most", 2),
        apart=2e-4,
    ),
    "train_liqe": Case(
        ("--splits", 1, "--crops", 3, "--train-crops", 2, "--batch", 4, "--epochs", 3, "--steps-per-epoch", 2, "--lr",
         1e-4, "--tasks", "distortions"),
    ),
    "train_mp_iqe": Case(
        ("--windows", 3, "--layers", 1, "--heads", 4, "--crops", 2, "--splits", 1, "--epochs", 2, "--warmup", 1, "--lr",
         1e-3, "--batch", 16),
    ),
    "pretrain": Case(  # an encoder without BatchNorm: what one process computes of a batch, two can
        ("--teacher", "signal", "--net", "test_convnext", "--shorter-edge", 64, "--crop", 48, "--held-out", 0.2,
         "--batch", 8, "--epochs", 3, "--lr", 0.02, "--accumulate", 2, "--pooled-dropout", 0.3),
        ("--pooled-dropout", 0),
        1e-5,
    ),
}  # fmt: skip
ON_CLIP = [name for name in CASES if name != "pretrain"]
slow = pytest.mark.slow


def build(name: str, clip_tree: Path, folder: Path) -> Recipe:
    flags: tuple[object, ...] = (*SAVED, *CASES[name].flags)
    if name == "train_exiqa":
        flags += ("--photos", clip_tree / "photos")
        dropping = VIT | {"vision_cfg": VIT["vision_cfg"] | {"patch_dropout": 0.3}}  # its draws count, too
        (folder / "dropping.json").write_text(json.dumps(dropping))
        flags += ("--clip-config", folder / "dropping.json")
    if name == "train_liqe":
        flags += ("--data", f"clive={clip_tree / 'clive'}", f"kadid={clip_tree / 'kadid'}")
    if name == "train_mp_iqe":
        flags += ("--labels", clip_tree / "clive_clip.txt")
    return Recipe(name, clip_tree, folder, flags)


@pytest.fixture
def recipe(request: pytest.FixtureRequest, clip_tree: Path, tmp_path: Path) -> Iterator[Recipe]:
    yield build(request.param, clip_tree, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)


def each(*names: str, quick: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Run a test with some recipes, those that are not ``quick`` only where slow tests run."""
    cases = [pytest.param(name, marks=() if name in quick else slow) for name in names]
    return pytest.mark.parametrize("recipe", cases, indirect=True)


@each(*CASES, quick=("train_exiqa", "pretrain"))
def test_an_interrupted_run_ends_as_a_whole_one_and_then_only_prints(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = recipe("whole")
    text = capsys.readouterr().out
    with watched_steps(dies=5), pytest.raises(ZeroDivisionError):
        recipe("out")
    assert not model_of(recipe.folder / "out").exists()
    with watched_steps() as taken:
        out = recipe("out")
    assert [number for number, _ in taken] == [4, 5], "nothing is done twice"
    assert differing(weights(out), weights(whole)) == set()
    assert result(out) == result(whole)
    assert not [path for path in out.rglob("*.safetensors") if path.name != "model.safetensors"]
    assert capsys.readouterr().out == text
    before = model_of(out).stat().st_mtime_ns
    recipe("out")
    assert capsys.readouterr().out == text
    assert model_of(out).stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"another configuration \(seed: 0 there, 1 now\)"):
        recipe("out", "--seed", 1)
    assert differing(weights(recipe("seed", "--seed", 1)), weights(whole))


@each(*CASES, quick=("train_exiqa", "train_mp_iqe", "pretrain"))
def test_a_loss_that_is_no_number_stops_with_the_images_of_its_batch(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_from: list[Any] = []

    def spying(images: Any, *arguments: Any, **settings: Any) -> Any:
        drawn_from.append(images)
        return loader(images, *arguments, **settings)

    for module in (folds, recipe.module):
        monkeypatch.setattr(module, "loader", spying, raising=False)
    message = r"the loss is nan at step 3; .*bad_batch\.json names its images"
    with watched_steps(breaks=3) as taken, pytest.raises(SystemExit, match=message):
        recipe("out")
    (path,) = (recipe.folder / "out").rglob("bad_batch.json")
    bad, batch, images = json.loads(path.read_text()), taken[3][1], drawn_from[0]
    assert (bad["step"], bad["loss"]) == (3, "nan")
    if recipe.name == "pretrain":
        assert bad["keys"] == [[images.index.keys[int(n)] for n in example.number] for example in batch]
    else:
        assert bad["files"] == [images.path(int(n)).name for n in batch.number]
    state = load_file(path.parent / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values()), "the checkpoint is from before it"
    assert not model_of(recipe.folder / "out").exists()


@each(*CASES, quick=("train_exiqa", "pretrain"))
def test_a_checkpoint_has_the_numbers_and_no_place_of_this_machine(recipe: Recipe, clip_tree: Path) -> None:
    out = recipe("out")
    saved = checkpoint.load(model_of(out))
    assert load(model_of(out)).has_score or recipe.name == "train_exiqa", "photos have no opinions"
    assert saved.provenance["metrics"] == result(model_of(out).parent)
    assert saved.provenance["recipe"] == f"training/{recipe.name}.py"
    for place in (clip_tree, recipe.folder):
        assert str(place) not in json.dumps([saved.provenance, saved.config])


@each(*ON_CLIP, quick=tuple(ON_CLIP))
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", 600), "batch: expected a multiple of the 1 processes, at most the "),
        (("--init", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--clip", "ViT-B-16"), "pretrained: expected a checkpoint file or a tag of ViT-B-16"),
        (("--clip", "none:there"), "model_name: expected one of open_clip's"),
        (("--tracker", "swanlab"), "--tracker: expected one that is installed (none"),
    ],
)
def test_what_cannot_be_run_is_refused(recipe: Recipe, flags: tuple[object, ...], message: str) -> None:
    if {"--clip", "--init"} & set(flags):
        words = [*map(str, recipe.flags)]
        if "--clip-config" in words:
            place = words.index("--clip-config")
            recipe.flags = words[:place] + words[place + 2 :]
    with pytest.raises(SystemExit) as error:
        recipe("out", *flags)
    assert message in str(error.value)


@each(*ON_CLIP, quick=tuple(ON_CLIP))
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "y", "--init", "z"), "--clip, --clip-config, --init: expected one of them"),
        (("--clip", "y", "--save-every", "0"), "--save-every: expected at least 1, got 0"),
        (("--clip", "y", "--no-such"), "unrecognized arguments: --no-such"),
    ],
)
def test_wrong_flags_are_refused(
    recipe: Recipe, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe.module.main(["--data", "clive=x", "--out", str(recipe.folder / "out"), *flags])
    assert message in capsys.readouterr().err
    assert not (recipe.folder / "out").exists()


@each("train_clip_iqa", "train_mp_iqe", quick=("train_clip_iqa",))
def test_a_bad_file_is_named(recipe: Recipe, tmp_path: Path) -> None:
    clive_tree.build(tmp_path / "clive", 32, 80, 64)
    for path in (tmp_path / "clive" / "Images").glob("*.*"):
        path.write_bytes(path.name.encode())
    with pytest.raises(SystemExit, match=r"\d+\.\w+: not an image"):
        recipe("bad", "--data", f"clive={tmp_path / 'clive'}")


@each("train_liqe", "train_mp_iqe", quick=("train_liqe", "train_mp_iqe"))
def test_a_start_that_knows_the_test_side_is_refused(recipe: Recipe) -> None:
    first = model_of(recipe("first"))
    again = model_of(recipe("again", "--init", first))
    assert checkpoint.load(again).provenance["init"] == checkpoint.load(first).provenance
    for start in (first, again):
        message = recipe.refusal("--init", start, "--splits", 2)
        assert f"--init: {start} has learnt from " in message
        assert " of the 6 files that split1 is tested on" in message


@each("train_exiqa", "train_mp_iqe", "pretrain")
def test_a_run_killed_by_the_system_ends_with_the_very_same_weights(recipe: Recipe) -> None:
    epochs = {"train_exiqa": 8, "train_mp_iqe": 8, "pretrain": 10}[recipe.name]
    each = {"train_exiqa": 2, "train_mp_iqe": 3, "pretrain": 2}[recipe.name]
    tests = ("--tests", 1) if recipe.name == "train_exiqa" else ()
    whole, out = recipe.killed("--epochs", epochs, "--workers", 1, *tests, steps=epochs * each)
    assert differing(weights(out), weights(whole)) == set()


@each(*CASES)
def test_two_processes_take_the_steps_of_one(recipe: Recipe, clip_tree: Path) -> None:
    """Pairs are made of all images of a batch, wherever they are."""
    case, plain = CASES[recipe.name], tuple[object, ...]()
    if recipe.name == "train_exiqa":  # dropout's draws differ between processes
        plain = ("--clip-config", clip_tree / "vit.json")
    outs = [recipe.on_processes(processes, *case.two, *plain) for processes in (1, 2)]
    (one, two), (ours, theirs) = map(weights, outs), map(result, outs)
    rows = [found["history"] if "history" in found else found["folds"][0]["history"] for found in (ours, theirs)]
    for first, second in zip(*rows, strict=True):
        numbers = {key: value for key, value in first.items() if isinstance(value, float)}
        assert numbers == pytest.approx({key: second[key] for key in numbers}, rel=1e-3, abs=1e-4)
    if "test" in ours:
        assert ours["test"]["plcc"] == pytest.approx(theirs["test"]["plcc"], abs=1e-2)
    for name in one if case.apart is not None else ():
        if name.endswith("attn.in_proj_bias"):  # softmax does not see a bias of the keys: Adam amplifies rounding there
            for state in (one, two):
                state[name] = torch.cat([state[name].chunk(3)[0], state[name].chunk(3)[2]])
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=case.apart, msg=name)
    if recipe.name == "pretrain":
        still = weights(recipe("still", *case.two, "--lr", 0, "--weight-decay", 0))
        name = "backbone.trunk.stem_0.weight"
        assert (still[name] - one[name]).abs().max() > 1e-3, "steps so small would be equal whatever was gathered"
    if recipe.name == "train_liqe":
        name = "clip.visual.transformer.resblocks.1.mlp.c_fc.weight"
        start = clip_of(str(clip_tree / "vit.json")).model.state_dict()[name.removeprefix("clip.")]
        assert (one[name] - two[name]).norm() < 0.1 * (one[name] - start).norm()


@slow
@pytest.mark.parametrize("kind", ["clip-iqa-plus", "exiqa", "liqe", "mp-iqe"])
def test_the_smoke_size_runs_as_users_run_it(clip_tree: Path, tmp_path: Path, kind: str) -> None:
    name = f"train_{kind.removesuffix('-plus').replace('-', '_')}"
    source = "kadid10" if kind == "exiqa" else "clive"
    words = [*unlabelled_tree.command(name), "--clip", small_clip.write(tmp_path / "clip", VIT), "--smoke", "--data"]
    shape = ["--windows", "3", "--heads", "4"] if kind == "mp-iqe" else []
    done = unlabelled_tree.shell(*words, f"{source[:5]}={clip_tree / source}", *shape, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("in-domain: CLIVE" if source == "clive" else "KADID-10k: random") in done.stdout
    assert load(f"{kind}:{model_of(tmp_path / 'out')}").names[0] == "score"

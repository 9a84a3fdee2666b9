"""Prompt selection: an encoder whose geometry makes the right pair known, and the recipe itself on a small CLIP."""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageEnhance, ImageFilter
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from attriqa import ATTRIBUTES
from attriqa.attributes import CANDIDATES, PROMPT_PAIRS, TEMPLATE, read_pairs
from attriqa.images import read
from attriqa.training.teachers import CLIPTeacher, SignalTeacher
from tests.support import small_clip
from tests.support.trees import clive as clive_tree
from tests.support.trees import unlabelled as unlabelled_tree

LEVELS = 5
RENDERINGS = 5 * LEVELS  # of a photo
Run = Callable[..., subprocess.CompletedProcess[str]]


recipe = unlabelled_tree.load_recipe("select_prompts")


# Scores


def test_spearman_is_scipys_with_ties_and_zero_for_constants() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (40, 3, 7)).astype(float)  # many ties
    target = rng.integers(0, 9, 40).astype(float)
    found = recipe.spearman(values, target)
    assert found.shape == (3, 7)
    for row in range(3):
        for column in range(7):
            expected = spearmanr(values[:, row, column], target).statistic
            assert found[row, column] == pytest.approx(expected, abs=1e-12)
    values[:, 1, 2] = 0.5
    assert recipe.spearman(values, target)[1, 2] == 0
    assert recipe.spearman(values, np.full(40, 3.0)).tolist() == np.zeros((3, 7)).tolist()


@pytest.mark.parametrize("slab", [1, 1000, 4_000_000])
def test_the_table_of_pairs_is_that_of_a_loop(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_SLAB", slab)
    rng = np.random.default_rng(1)
    features = rng.integers(-2, 3, (3, 11, 4)).astype(float)
    texts = recipe.Texts(rng.integers(-2, 3, (6, 4)).astype(float), rng.integers(-2, 3, (5, 4)).astype(float))
    target = np.arange(11.0)
    found = recipe.pair_srocc(features, texts, target)
    assert found.shape == (6, 5)
    for i, positive in enumerate(texts.positive):
        for j, negative in enumerate(texts.negative):
            scores = [group @ positive - group @ negative for group in features]
            expected = [spearmanr(target, score).statistic if np.ptp(score) else 0.0 for score in scores]
            assert found[i, j] == pytest.approx(np.mean(expected), abs=1e-12)


# A planted encoder


def planted() -> dict[str, dict[str, tuple[str, str]]]:
    """Two pairs per attribute, of words that stand in no other attribute's lists: the right one and the wrong one."""
    lists = [word for candidates in CANDIDATES.values() for words in candidates for word in words]
    chosen = {}
    for name, candidates in CANDIDATES.items():
        own = [[word for word in words if lists.count(word) == 1] for words in candidates]
        chosen[name] = {"best": (own[0][7], own[1][3]), "worst": (own[0][2], own[1][9])}
    return chosen


PLANTED = planted()


class PlantedEncoder:
    """Its first five axes are the attributes; other words and the rest of an image lie in a space of chance.

    So the score of the planted pair is the attribute itself, that of the wrong pair its opposite, and any other pair
    has chance in it.
    """

    identity = "planted"

    def __init__(self, fail_after: int | None = None) -> None:
        self.images: list[bytes] = []
        self.texts: list[str] = []
        self.fail_after = fail_after
        self.teacher = SignalTeacher()
        self.words: dict[str, Tensor] = {}
        for axis, pairs in enumerate(PLANTED.values()):
            for key, sign in (("best", 1), ("worst", -1)):
                for word, side in zip(pairs[key], (1, -1), strict=True):
                    self.words[word] = torch.zeros(21)
                    self.words[word][axis] = sign * side

    def prepare(self, images: Tensor) -> Tensor:
        return images[:, :, :64, :64]

    def encode_image(self, images: Tensor) -> Tensor:
        if self.fail_after is not None and len(self.images) + len(images) > self.fail_after:
            raise KeyboardInterrupt
        self.images += [image.numpy().tobytes() for image in images]
        seen = torch.atan(self.teacher(images) / torch.tensor([1.0, 20, 50, 50, 0.1]))
        return torch.cat([seen, torch.stack([chance(image.numpy().tobytes()) for image in images])], 1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        words = [text.removesuffix(TEMPLATE.format("")) for text in texts]
        return torch.stack([self.words.get(word, torch.cat([torch.zeros(5), chance(word.encode())])) for word in words])


def chance(content: bytes) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
    return torch.randn(16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        smooth = clive_tree.picture(index, 72, 64).filter(ImageFilter.GaussianBlur(0.4))
        ImageEnhance.Color(smooth).enhance(0.8).save(folder / f"photo_{index}.png")
    return folder


def write_spaq(root: Path, *, noisy_is_high: bool = False, count: int = 20) -> Path:
    """SPAQ's layout, its people being `SignalTeacher`: scores are the ranks of the measures on 0 to 100."""
    import pandas as pd

    (root / "TestImage").mkdir(parents=True)
    (root / "Annotations").mkdir()
    names = [f"{index:05}.png" for index in range(1, count + 1)]
    for index, name in enumerate(names):
        image = clive_tree.picture(100 + index, 64, 64).filter(ImageFilter.GaussianBlur(index * 7 % count / 8))
        ImageEnhance.Brightness(image).enhance(0.5 + index / count).save(root / "TestImage" / name)
    measured = torch.cat([SignalTeacher()(read(root / "TestImage" / name, shorter_edge=64)[None]) for name in names])
    scores = rankdata(measured.numpy(), axis=0) * (100 / count)
    table = {"Image name": names, "MOS": scores[:, ATTRIBUTES.index("noisiness")]}
    table |= {name.capitalize(): scores[:, index] for index, name in enumerate(ATTRIBUTES)}
    if noisy_is_high:
        table["Noisiness"] = 100 - scores[:, ATTRIBUTES.index("noisiness")]
    pd.DataFrame(table).to_excel(root / "Annotations" / "MOS and Image attribute scores.xlsx", index=False)
    return root


@pytest.fixture(scope="module")
def spaq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spaq(tmp_path_factory.mktemp("spaq") / "SPAQ")


def select(out: Path, encoder: PlantedEncoder, **flags: Any) -> dict[str, Any]:
    config = recipe.Config(out=out, **{"levels": LEVELS, "workers": 0, "spaq_edge": 64, "chunk": 2, **flags})
    result: dict[str, Any] = recipe.select(config, lambda _: encoder)
    return result


@pytest.fixture
def no_heat_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the rest."""
    monkeypatch.setattr(recipe, "heat_map", lambda *_: None)


@pytest.mark.usefixtures("no_heat_maps")
@pytest.mark.parametrize("task", ["distortion", "human", "joint"])
def test_the_planted_pair_is_found(task: str, photos: Path, spaq: Path, tmp_path: Path) -> None:
    encoder = PlantedEncoder()
    result = select(tmp_path, encoder, task=task, photos=photos, spaq=spaq)
    parts = {"distortion": ("distortion",), "human": ("human",), "joint": ("distortion", "human")}[task]
    table = json.loads((tmp_path / "prompts.json").read_text())["attributes"]
    for name in ATTRIBUTES:
        found = result["attributes"][name]
        for key, sign in (("best", 1), ("worst", -1)):
            pair = found[key]
            assert (pair["positive"], pair["negative"]) == PLANTED[name][key], name
            for part in parts:
                assert sign * pair[part] == pytest.approx(1, abs=1e-9 if part == "human" else 0.05), (name, part)
            assert pair["score"] == pytest.approx(sum(pair[part] for part in parts))
        total = np.sum([table[name]["scores"][part] for part in parts], axis=0)
        assert total.shape == (50, 50)
        middle = np.sort(total, axis=None)[[1249, 1250]]
        assert min(abs(found["median"]["score"] - middle)) < 2e-6, "half of the pairs are better, half are worse"
        i, j = (words.index(word) for words, word in zip(CANDIDATES[name], PROMPT_PAIRS[name], strict=True))
        assert found["published"]["score"] == pytest.approx(total[i, j], abs=2e-6)
        better = [1 + (total > found["published"]["score"] + rounding).sum() for rounding in (2e-6, -2e-6)]
        assert better[0] <= found["published"]["rank"] <= better[1]
    for key in ("best", "worst"):
        assert read_pairs(tmp_path / "prompts.json", key) == {name: pairs[key] for name, pairs in PLANTED.items()}  # type: ignore[arg-type]
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert len(encoder.texts) == 500, "100 texts for each attribute"
    assert len(encoder.images) == (3 * RENDERINGS if task != "human" else 0) + (20 if task != "distortion" else 0)


@pytest.mark.usefixtures("no_heat_maps")
def test_a_noisiness_that_runs_against_mos_is_turned_round(
    tmp_path: Path, spaq: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_spaq(tmp_path / "SPAQ", noisy_is_high=True)
    straight = select(tmp_path / "a", PlantedEncoder(), task="human", spaq=spaq)
    assert "warning" not in capsys.readouterr().out
    assert straight["spaq_noisiness"] == {"srocc_with_mos": pytest.approx(1), "turned_round": False}
    turned = select(tmp_path / "b", PlantedEncoder(), task="human", spaq=other)
    assert "warning: SPAQ's Noisiness runs against MOS (SROCC -1.000)" in capsys.readouterr().out
    assert turned["spaq_noisiness"] == {"srocc_with_mos": pytest.approx(-1), "turned_round": True}
    assert turned["attributes"] == straight["attributes"]


@pytest.mark.usefixtures("no_heat_maps")
def test_an_interrupted_run_goes_on_and_encodes_nothing_twice(photos: Path, spaq: Path, tmp_path: Path) -> None:
    flags = {"task": "joint", "photos": photos, "spaq": spaq, "batch": RENDERINGS}
    whole = select(tmp_path / "whole", PlantedEncoder(), **flags)
    first = PlantedEncoder(fail_after=2 * RENDERINGS + 10)
    with pytest.raises(KeyboardInterrupt):
        select(tmp_path / "out", first, **flags)
    kept = list((tmp_path / "out" / "features").iterdir())
    assert [path.name for path in kept] == ["ramps-000000.safetensors"], "two of the three photos are safe"
    second = PlantedEncoder()
    assert select(tmp_path / "out", second, **flags) == whole
    assert len(second.images) == RENDERINGS + 20
    assert not set(second.images) & set(first.images)
    third = PlantedEncoder(fail_after=0)
    assert select(tmp_path / "out", third, **flags) == whole, "nothing is encoded again"


@pytest.mark.usefixtures("no_heat_maps")
def test_batches_and_chunks_change_nothing(photos: Path, spaq: Path, tmp_path: Path) -> None:
    flags = {"task": "joint", "photos": photos, "spaq": spaq, "photo_limit": 2, "levels": 3}
    one = select(tmp_path / "one", PlantedEncoder(), batch=1, chunk=1, **flags)
    many = select(tmp_path / "many", PlantedEncoder(), batch=1000, chunk=1000, **flags)
    for name in ATTRIBUTES:
        for key in ("best", "worst", "published"):
            ours, theirs = one["attributes"][name][key], many["attributes"][name][key]
            assert (ours["positive"], ours["negative"]) == (theirs["positive"], theirs["negative"])
            assert ours["score"] == pytest.approx(theirs["score"], abs=0.02)


def test_images_of_different_sizes_are_encoded_in_order_and_in_batches() -> None:
    class Encoder:
        def __init__(self) -> None:
            self.counts: list[int] = []

        def encode_image(self, images: Tensor) -> Tensor:
            self.counts.append(len(images))
            return images.mean((2, 3))

    sizes = [(2, 40), (1, 50), (1, 50), (7, 50), (2, 40), (1, 40)]
    loaded = [torch.full((count, 3, side, 40), float(index)) for index, (count, side) in enumerate(sizes)]
    encoder = Encoder()
    found = list(recipe.encoded(encoder, loaded, 4))
    assert [features[:, 0].tolist() for features in found] == [[i] * count for i, (count, _) in enumerate(sizes)]
    assert encoder.counts == [2, 2, 4, 3, 3]


@pytest.mark.usefixtures("no_heat_maps")
def test_features_of_another_encoder_or_other_photos_are_refused(photos: Path, tmp_path: Path) -> None:
    select(tmp_path / "out", PlantedEncoder(), task="distortion", photos=photos)
    other = PlantedEncoder()
    other.identity = "another"
    with pytest.raises(ValueError, match=r"made with other encoder \(planted there, another now\); choose another"):
        select(tmp_path / "out", other, task="distortion", photos=photos)
    moved = tmp_path / "photos"
    moved.mkdir()
    for path in photos.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    select(tmp_path / "own", PlantedEncoder(), task="distortion", photos=moved)
    (moved / "photo_0.png").rename(moved / "photo_9.png")
    with pytest.raises(ValueError, match="made with other names"):
        select(tmp_path / "own", PlantedEncoder(), task="distortion", photos=moved)


# The recipe as users run it


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_clip.write(tmp_path_factory.mktemp("clip"))


@pytest.mark.slow
def test_the_recipe_runs_on_a_real_clip(
    run_recipe: Run, clip: str, photos: Path, spaq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--photos", photos, "--spaq", spaq, "--model", clip, "--out", tmp_path / "out", "--smoke"]
    done = run_recipe("training/select_prompts.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["task"] == "joint"
    assert (result["n_photos"], result["levels"], result["n_rated"]) == (3, 4, 12)
    for name, found in result["attributes"].items():
        line = re.search(rf"^\| {name} \| (.*) \((\d+)\) \|$", done.stdout, re.MULTILINE)
        assert line is not None, done.stdout
        cells = [f"{pair['positive']} / {pair['negative']} {pair['score']:+.3f}" for pair in found.values()]
        assert line[1] == " | ".join(cells)
        assert int(line[2]) == found["published"]["rank"]
        scores = [found[key]["score"] for key in ("best", "median", "worst")]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > scores[2]
        assert (tmp_path / "out" / f"heatmap_{name}.png").read_bytes().startswith(b"\x89PNG")
    teacher = CLIPTeacher(clip, pairs=tmp_path / "out" / "prompts.json")
    assert teacher.encoder.identity == result["encoder"]
    # The best pair does on the data what the table says of it: one attribute, recomputed through the teacher.
    human = recipe.Rated(recipe.Config(task="human", spaq=spaq, smoke=True))
    seen = torch.cat([teacher(read(path, shorter_edge=64)[None]) for path in human.paths]).double().numpy()
    for index, name in enumerate(ATTRIBUTES):
        expected = result["attributes"][name]["best"]["human"]
        assert spearmanr(seen[:, index], human.scores[name]).statistic == pytest.approx(expected, abs=1e-6)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "features").iterdir()}
    capsys.readouterr()
    recipe.main([str(flag) for flag in flags])
    assert capsys.readouterr().out == done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "features").iterdir()} == files


def test_wrong_input_is_refused_in_words(
    photos: Path, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            recipe.main([str(word) for word in ("--out", tmp_path / "out", "--model", clip, "--smoke", *words)])
        assert stop.value.code not in (0, None)
        return str(stop.value.code) + capsys.readouterr().err

    assert "--task joint needs --spaq" in refused("--photos", photos)
    assert "--task distortion needs --photos" in refused("--task", "distortion")
    assert "--levels: expected 3 or more, got 2" in refused("--task", "distortion", "--photos", photos, "--levels", 2)
    assert "no *.tif in " in refused("--task", "distortion", "--photos", photos, "--photo-pattern", "*.tif")
    assert "no such file or folder: " in refused("--task", "distortion", "--photos", tmp_path / "none")
    assert "the layout of SPAQ is" in refused("--task", "human", "--spaq", tmp_path)
    assert "nearest: ViT-B-16" in refused("--task", "distortion", "--photos", photos, "--model", "ViT-B-61")
    assert not (tmp_path / "out").exists(), "nothing was begun"
    broken = tmp_path / "photos"
    broken.mkdir()
    (broken / "a.png").write_bytes((photos / "photo_0.png").read_bytes()[:900])
    assert "a.png: " in refused("--task", "distortion", "--photos", broken)
    assert not list(tmp_path.rglob("prompts.json"))

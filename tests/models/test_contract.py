"""What every model promises, whatever it stands on: the same behaviour behind one name (`QualityModel`)."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from attriqa import QualityReward, cli, load
from attriqa.explain import saliency
from attriqa.models import KINDS, QualityModel
from attriqa.models.clip_iqa import Pair
from attriqa.models.mp_iqe import KADID_NAMES
from attriqa.models.views import View
from tests.support import clip_models, small_net
from tests.support.clip_models import teach_score


class Case(NamedTuple):
    """A trained model, and the name of its kind for `load`."""

    kind: str
    build: Callable[[], QualityModel]


def exiqa() -> QualityModel:
    return teach_score(clip_models.tuned_exiqa()).eval()


def own_pairs() -> QualityModel:
    pairs = (Pair("natural", "Natural photo.", "Synthetic photo."), Pair('"very" new', "New photo.", "Old photo."))
    return clip_models.clip_iqa(pairs=pairs)


def mp_iqe() -> QualityModel:
    return teach_score(clip_models.mp_iqe(distortions=KADID_NAMES)).eval()


CASES = {
    "attribute-net": Case("attribute-net", small_net.build),
    "clip-iqa": Case("clip-iqa", clip_models.clip_iqa),
    "clip-iqa of one's own": Case("clip-iqa", own_pairs),
    "clip-iqa-plus": Case("clip-iqa-plus", clip_models.clip_iqa_plus),
    "exiqa": Case("exiqa", exiqa),
    "liqe": Case("liqe", clip_models.liqe),
    "mp-iqe": Case("mp-iqe", mp_iqe),
}


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def model(case: Case) -> QualityModel:
    return case.build()


def pictures(count: int, height: int = 72, width: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(count, 3, 6, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def test_every_kind_is_tested() -> None:
    assert {case.kind for case in CASES.values()} == set(KINDS)


def test_a_batch_is_worth_its_images_one_by_one(model: QualityModel) -> None:
    reward = QualityReward(model)
    images = pictures(5)
    together = reward.assess(images)
    alone = [reward.assess(image[None]) for image in images]
    for field, parts in zip(together, zip(*alone, strict=True), strict=True):
        if field is not None:
            torch.testing.assert_close(field, torch.cat(parts), atol=1e-5, rtol=0)
    shuffled = reward(images[[3, 1, 4, 0, 2]])
    torch.testing.assert_close(shuffled, together.score[[3, 1, 4, 0, 2]], atol=1e-5, rtol=0)
    assert together.score.std() > 1e-4  # it tells images apart


def test_what_it_says_has_the_columns_that_it_names(model: QualityModel) -> None:
    assessment = QualityReward(model).assess(pictures(2))
    told = [0 if field is None else field.shape[1] for field in (assessment.attributes, assessment.distortions)]
    assert told == [len(model.attributes), len(model.distortions)]
    assert len(set(model.names)) == len(model.names) == 1 + sum(told)
    for field in assessment:
        assert field is None or (field.dtype == torch.float32 and bool(((field >= 0) & (field <= 1)).all()))


def test_gradients_reach_every_image_and_no_weight(model: QualityModel) -> None:
    reward = QualityReward(model)
    images = pictures(3).requires_grad_()
    reward(images).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert bool((images.grad.flatten(1).abs().amax(1) > 0).all())
    assert list(reward.parameters()) == []


def test_chunks_change_nothing(model: QualityModel) -> None:
    images = pictures(4, 96, 96)
    found = []
    for budget in (1, 4096):
        leaf = images.clone().requires_grad_()
        score = QualityReward(model, memory_mib=budget)(leaf)
        score.sum().backward()
        assert leaf.grad is not None
        found.append((score.detach(), leaf.grad))
    torch.testing.assert_close(*(score for score, _ in found), atol=1e-5, rtol=0)
    torch.testing.assert_close(*(gradient for _, gradient in found), atol=1e-5, rtol=1e-3)


def test_a_model_in_memory_stays_as_it_is(model: QualityModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = QualityReward(model), QualityReward(model)
    assert first.identity == second.identity
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_checkpoint_gives_the_same_model(case: Case, model: QualityModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path, {"data": "none"})
    images = pictures(2)
    reward = QualityReward(f"{case.kind}:{path}")
    said = QualityReward(model)(images)
    torch.testing.assert_close(reward(images), said, atol=2e-3, rtol=0)  # weights are stored as float16
    assert reward.names == model.names
    assert reward.provenance == {"data": "none"}
    assert type(load(path)) is type(model)
    for other in set(KINDS) - {case.kind}:
        with pytest.raises(ValueError, match=f"expected a checkpoint of {KINDS[other][0]}, got {type(model).__name__}"):
            load(f"{other}:{path}")


def test_other_views_are_refused(model: QualityModel) -> None:
    other: View = "own" if "own" not in model.views else "full"
    with pytest.raises(ValueError, match=rf"view: expected .* of this model, got '{other}'"):
        QualityReward(model, view=other)


def test_the_command_line_scores_and_explains(
    model: QualityModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, table, page = tmp_path / "model.safetensors", tmp_path / "scores.csv", tmp_path / "page.html"
    model.save(path, {})
    for number, picture in enumerate(pictures(2)):
        pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    common = ["--model", str(path)]
    assert cli.main(["score", str(tmp_path), "--csv", str(table), "--report", str(page), *common]) == 0
    header, *rows = csv.reader(table.read_text().splitlines())
    assert header == ["path", *model.names]
    assert len(rows) == 2
    assert "0.png" in page.read_text()
    assert cli.main(["score", str(tmp_path), "--csv", str(table), *common]) == 0  # the table is read back
    assert "2 of 2 images are in" in capsys.readouterr().err
    out = tmp_path / "where.png"
    assert cli.main(["explain", str(tmp_path / "0.png"), "--out", str(out), *common]) == 0
    with Image.open(out) as picture:
        assert picture.size == (90, 72)
    assert "why: " in capsys.readouterr().out


def test_maps_cover_images_and_know_what_can_be_asked(model: QualityModel) -> None:
    found = saliency(model, pictures(2))
    assert found.shape == (2, 72, 90)
    assert bool(((found >= 0) & (found <= 1)).all())
    with pytest.raises(ValueError, match=r"of: expected score.* got 'beauty'"):
        saliency(model, pictures(1), "beauty")

"""What every scorer keeps to, optimised or held out: a number per image, gradients to the pixels and no others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attriqa import QualityReward
from attriqa.judges.brisque import BRISQUE
from attriqa.judges.niqe import NIQE
from attriqa.models.views import CROPPED_VIEWS
from attriqa.reward import Guard
from tests.judges.natural_scenes import photo, write_brisque, write_niqe
from tests.support import image_cases, small_net

Scorer = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """A scorer, how far it may be off, and the least share of pixels that it sees."""

    scorer: Scorer
    tolerance: float = 1e-5
    seen: float = 0.9


KINDS = (*CROPPED_VIEWS, "guarded", "combined", "niqe", "brisque")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("scorers")
    net, other = (small_net.save(folder / f"{seed}.safetensors", seed=seed) for seed in (0, 5))
    guard = Guard(members=(other,), jitter_views=2, attribute_bounds={"sharpness": (0.4, 0.6)})
    cases = {view: Case(QualityReward(net, view=view), seen=0.3 if view == "five_crop" else 0.99)
             for view in CROPPED_VIEWS}  # fmt: skip
    combined = QualityReward(net) + (lambda images: images.square().mean((1, 2, 3)))
    return cases | {
        "guarded": Case(QualityReward(net, guard=guard), seen=0.8),
        "combined": Case(combined, seen=0.99),
        "niqe": Case(NIQE(write_niqe(folder / "niqe.npz")), 1e-10),
        "brisque": Case(BRISQUE(write_brisque(folder)), 1e-10),
    }


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


@pytest.fixture(scope="module")
def images(photos: list[NDArray[np.uint8]]) -> Tensor:
    """(3, 3, 192, 192)."""
    return torch.cat([photo(image, 192, 192) for image in photos])


def slope(scorer: Scorer, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(scorer(leaf).sum(), leaf)
    return found


def test_a_batch_is_its_images_one_by_one_in_any_order(case: Case, images: Tensor) -> None:
    single = torch.cat([case.scorer(image[None]) for image in images])
    assert single.shape == (3,)
    assert len(single.unique()) == 3, "the test's images must differ for the other tests to mean anything"
    for order in ([0, 1, 2], [2, 0, 1]):
        torch.testing.assert_close(case.scorer(images[order]), single[order], rtol=case.tolerance, atol=case.tolerance)


def test_gradients_reach_the_pixels_of_each_image_and_lead_up(case: Case, images: Tensor) -> None:
    before = images.clone()
    found = slope(case.scorer, images)
    assert torch.equal(images, before)
    assert found.isfinite().all()
    assert ((found != 0).float().mean((1, 2, 3)) > case.seen).all()
    higher = case.scorer((images + 0.2 / 255 * found.sign()).clamp(0, 1))
    assert (higher > case.scorer(images)).all()
    leaf = images.clone().requires_grad_()
    (own,) = torch.autograd.grad(case.scorer(leaf)[1], leaf)
    assert own[1].abs().max() > 0
    assert own[0].abs().max() == own[2].abs().max() == 0


def test_no_weight_can_be_trained_and_no_random_state_is_touched(case: Case, images: Tensor) -> None:
    state = torch.get_rng_state()
    scorer: Any = case.scorer
    scorer.train().requires_grad_(True)
    assert list(scorer.parameters()) == []
    scorer(images[:1].clone().requires_grad_()).sum().backward()
    assert all(held.grad is None for held in scorer.buffers())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_images_without_texture_have_finite_scores_and_gradients(case: Case, value: float) -> None:
    flat = torch.full((1, 3, 192, 192), value)
    assert case.scorer(flat).isfinite().all()
    assert slope(case.scorer, flat).isfinite().all()


def test_what_is_no_batch_of_images_is_refused(case: Case) -> None:
    for wrong in image_cases.malformed_tensors():
        with pytest.raises(ValueError, match="images: expected") as error:
            case.scorer(wrong.value)  # type: ignore[arg-type]
        assert wrong.word in str(error.value), wrong.name

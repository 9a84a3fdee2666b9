"""Recovery with ground truth: perturbations, how far pictures are apart, and what a search that sees it gets back."""

import numpy as np
import pytest
import torch
from skimage import color

from attriqa_envs.agents.search import Objective, adam, blind
from attriqa_envs.evaluation.recovery import PERTURBATIONS, errors, mean_errors, originals, table_text, toward
from attriqa_envs.isp import render
from attriqa_envs.isp.difference import MAX_PSNR, ciede2000, delta_e, lab_of, psnr
from attriqa_envs.tuning import TuningTask
from tests.support.isp_pictures import picture

FREE = TuningTask(distance_weight=0.0, clipping_weight=0.0)


def colours(seed: int) -> torch.Tensor:
    """``(1, 3, 20, 30)`` of all the gamut, grays and black among them."""
    made = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(seed))
    made[..., :5] = made[:, :1, :, :5]
    made[..., 5] = 0
    return made


def test_lab_is_that_of_scikit_image() -> None:
    """Whose matrix is rounded otherwise."""
    expected = color.rgb2lab(colours(0)[0].permute(1, 2, 0).double().numpy())
    np.testing.assert_allclose(lab_of(colours(0))[0].permute(1, 2, 0).numpy(), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # Sharma, Wu and Dalal 2005, table 1: where implementations go wrong
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.4900, -0.0010), (50, -2.4900, 0.0009), 7.1792),
        ((50, 2.4900, -0.0010), (50, -2.4900, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_published_colour_differences(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    one, two = (torch.tensor(lab, dtype=torch.float64)[None] for lab in (first, second))
    assert ciede2000(one, two).item() == pytest.approx(expected, abs=5e-5)
    assert ciede2000(two, one).item() == pytest.approx(expected, abs=5e-5)


def test_equal_pictures_are_no_way_apart() -> None:
    same = colours(0)
    assert errors(same, same) == [{"psnr": MAX_PSNR, "delta_e": 0.0}]
    other = same.clone()
    other[:, 1] = 1 - other[:, 1]
    both = torch.cat([other, same])
    assert psnr(both, torch.cat([same, same]))[0] == pytest.approx(
        -10 * np.log10(float((other - same).square().mean()))
    )
    assert delta_e(both, torch.cat([same, same])).tolist() == [pytest.approx(delta_e(other, same)[0]), 0]


def test_every_perturbation_shows_and_loses_nothing_but_what_is_below_black() -> None:
    linear = picture(2, 40, 48)
    reference = originals(linear)
    shown = {}
    for perturbation in PERTURBATIONS:
        changed = perturbation.apply(linear, [3, 4])
        assert changed.shape == linear.shape, perturbation.name
        assert bool((changed >= 0).all()), perturbation.name
        assert torch.equal(changed[1:], perturbation.apply(linear[1:], [4])), perturbation.name
        shown[perturbation.name] = errors(originals(changed), reference)[0]
    assert min(entry["delta_e"] for entry in shown.values()) > 2
    assert max(entry["psnr"] for entry in shown.values()) < 31
    noisy = next(p for p in PERTURBATIONS if p.name == "noise")
    assert not torch.equal(noisy.apply(linear, [3, 4]), noisy.apply(linear, [5, 6]))
    bright = next(p for p in PERTURBATIONS if p.name == "bright").apply(linear, [0, 0])
    assert float(bright.max()) > 1  # headroom, as a raw file has it


def test_a_search_that_knows_the_original_gets_it_back() -> None:
    """And one that is blind to it does not: what undoes a perturbation is the score."""
    linear = picture(2, 32, 32)
    reference = originals(linear)
    for name, least in (("dark", 12), ("flat", 5)):
        changed = next(p for p in PERTURBATIONS if p.name == name).apply(linear, [0, 0])
        before = errors(originals(changed), reference)
        found = adam(Objective(changed, toward(reference), FREE), 25)
        after = errors(render(changed, found.params), reference)
        told = mean_errors(before, after)
        assert told["psnr_gain"] > least, (name, told)
        assert told["nearer"] == 2, (name, told)
        blinded = adam(Objective(changed, blind(lambda p: -p.std((1, 2, 3))), FREE), 8)
        assert mean_errors(before, errors(render(changed, blinded.params), reference))["psnr_gain"] < least / 2, name


def test_the_summary_is_of_gains_and_says_how_sure() -> None:
    before = [{"psnr": 20.0, "delta_e": 10.0}, {"psnr": 22.0, "delta_e": 6.0}]
    after = [{"psnr": 26.0, "delta_e": 4.0}, {"psnr": 21.0, "delta_e": 7.0}]
    told = mean_errors(before, after)
    assert (told["psnr_gain"], told["delta_e_gain"], told["nearer"]) == (2.5, 2.5, 1)
    assert told["delta_e_gain_low"] == -1
    assert told["delta_e_gain_high"] == 6
    assert "psnr_gain_low" not in mean_errors(before[:1], after[:1])
    scores = {"score_original": 0.5, "score_before": 0.25, "score_after": 0.75}
    text = table_text([{"perturbation": "dark", "method": "adam", **told, **scores}])
    assert all(
        word in text
        for word in ("dark", "adam", "21.00 -> 23.50", "8.00 ->  5.50", "[-1.00, 6.00]", "1/2", "0.250 -> 0.750")
    )
    with pytest.raises(ValueError, match="as many of each, at least one; got 0 and 1"):
        mean_errors([], after[:1])

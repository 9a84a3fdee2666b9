"""Maps from image towers: they point at the patch that matters, wherever a model's crops lie, in a ViT and a ResNet."""

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.explain.tower_maps import _places, _tower, tower_map
from tests.support import small_clip

BOXES = ((0, 0), (22, 52), (10, 20))  # rows and columns where the crops of `Crops` begin


class Crops(nn.Module):
    """Looks at crops of 48 px, normalised as no image is, through the tower of a small CLIP."""

    def __init__(self, folder: Path, scale: float = 1.0) -> None:
        super().__init__()
        self.visual = open_clip.create_model(small_clip.write(folder)).visual.eval()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        if self.scale != 1:
            images = F.interpolate(images, scale_factor=self.scale, mode="bicubic", antialias=True)
        crops = [images[:, :, top : top + 48, left : left + 48] for top, left in BOXES]
        features: Tensor = self.visual((torch.cat(crops) - 0.3) / 0.2)
        return features


def picture(height: int = 70, width: int = 100) -> Tensor:
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(2))
    return F.interpolate(coarse, (height, width), mode="bilinear")


def test_places_of_crops_are_found_out(tmp_path: Path) -> None:
    model = Crops(tmp_path)
    found = _places(model, _tower(model), picture())
    assert found == [(top, left, 48, 48) for top, left in BOXES]
    half = Crops(tmp_path, scale=0.5)
    found = _places(half, _tower(half), picture(140, 200))
    assert found == [(2 * top, 2 * left, 96, 96) for top, left in BOXES]


def test_a_map_lies_where_crops_lie_and_nowhere_else(tmp_path: Path) -> None:
    model, image = Crops(tmp_path), picture()
    weights = torch.linspace(-1, 1, 24)
    last = tower_map(model, image, lambda seen: (model(seen)[1] * weights).sum())  # the second crop alone matters
    covered = torch.zeros(70, 100, dtype=torch.bool)
    for top, left in BOXES:
        covered[top : top + 48, left : left + 48] = True
    assert last.shape == (1, 70, 100)
    assert bool((last >= 0).all())
    assert not last[0, ~covered].any()
    assert last[0, 22:70, 70:100].std() > 0  # where it alone lies
    assert last[0, 22:70, 70:100].mean() > last[0, :20, :18].mean()


def test_a_resnet_points_at_what_raises_the_output(tmp_path: Path) -> None:
    visual = open_clip.create_model(small_clip.write(tmp_path, small_clip.RESNET)).visual.eval()
    model = nn.Sequential(visual)
    image = picture(64, 64)
    maps: list[Tensor] = []
    handle = visual.layer4.register_forward_hook(lambda module, args, output: maps.append(output))
    weights = torch.linspace(-1, 1, 24)
    found = tower_map(model, image, lambda seen: (model(seen)[0] * weights).sum())
    handle.remove()
    (gradient,) = torch.autograd.grad(  # Grad-CAM by hand, on the same maps
        (visual.attnpool(activation := maps[-1].detach().requires_grad_())[0] * weights).sum(), activation
    )
    cam = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).clamp(min=0)
    wide = F.interpolate(cam.detach(), (64, 64), mode="bilinear")[0]
    torch.testing.assert_close(found, wide - wide.min(), atol=1e-5, rtol=1e-4)
    assert found.max() > 0


def test_models_without_a_tower_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model: expected an AttributeNet or .* got Conv2d"):
        tower_map(nn.Conv2d(3, 3, 1), picture(), lambda seen: seen.sum())

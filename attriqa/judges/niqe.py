"""NIQE, a judge that has seen no distortion and no opinion: how far an image is from natural scenes' statistics."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from attriqa import images as image_io
from attriqa.judges.natural_scenes import fit_aggd, gamma_ratio, in_chunks, mscn, round_straight_through, weighted

Luminance = Literal["gray", "y"]
BLOCK = 96  # px; statistics are of blocks, 48 px at half the size
UNTEXTURED = 100.0  # the distance of an image with fewer than two textured blocks; the published code has NaN
_FEATURES = 36
_LUMINANCE: dict[Luminance, tuple[float, float, float, float]] = {  # of red, green and blue in [0, 1], and of black
    "gray": (255 * 0.298936021293775, 255 * 0.587043074451121, 255 * 0.114020904255103, 0.0),
    "y": (65.481, 128.553, 24.966, 16.0),
}
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows, columns: neighbours whose products are fitted
# Weights of 8 neighbours at half the size: a cubic (a = -0.5) stretched to twice its width.
_DISTANCES = np.abs(np.arange(8) - 3.5) / 2
_CUBIC = np.where(
    _DISTANCES <= 1,
    1.5 * _DISTANCES**3 - 2.5 * _DISTANCES**2 + 1,
    -0.5 * _DISTANCES**3 + 2.5 * _DISTANCES**2 - 4 * _DISTANCES + 2,
)
_HALVING = (_CUBIC / _CUBIC.sum()).tolist()


class NIQE(nn.Module):
    """Natural Image Quality Evaluator (Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 2013).

    ``niqe(images)`` is higher for better images, as every judge of ours: the published distance, negated.
    Differentiable to the pixels: luminance is rounded to 8 bits as published but passes gradients as if it were not,
    and a fitted shape has the gradient of the function that its table samples. Computed in float64.

    Blocks without texture (constant to within rounding) are left out.

    Args:
        path: ``.npz`` of the published model of pristine photos: ``mu_pris_param`` (1, 36), ``cov_pris_param`` (36, 36)
            and ``gaussian_window`` (7, 7), as BasicSR converted it.
        luminance: ``"gray"``, MATLAB's ``rgb2gray``, as the authors' code has it, or ``"y"``, the Y of BT.601, as
            papers on super-resolution have it.

    Raises:
        ValueError: the file is not that, or ``luminance`` neither of those.
        FileNotFoundError: there is no such file.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, path: str | Path, *, luminance: Luminance = "gray") -> None:
        super().__init__()
        if luminance not in get_args(Luminance):
            raise ValueError(f"luminance: expected gray or y, got {luminance!r}")
        self.luminance: Luminance = luminance
        shapes = {"mu_pris_param": (1, _FEATURES), "cov_pris_param": (_FEATURES,) * 2, "gaussian_window": (7, 7)}
        try:
            with np.load(path, allow_pickle=False) as file:
                parameters = {name: np.asarray(file[name], np.float64) for name in shapes}
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path}: expected an .npz with {', '.join(shapes)} ({error})") from error
        for name, shape in shapes.items():
            if parameters[name].shape != shape or not np.isfinite(parameters[name]).all():
                raise ValueError(f"{path}: expected {name} of shape {shape}, finite; got {parameters[name].shape}")
        window = parameters["gaussian_window"]
        self.taps: list[float] = window.sum(0).tolist()
        if not np.allclose(np.outer(self.taps, self.taps), window, rtol=0, atol=1e-9):
            raise ValueError(f"{path}: expected a gaussian_window that is a product of rows and columns and sums to 1")
        self.register_buffer("mean", torch.from_numpy(parameters["mu_pris_param"][0]))
        self.register_buffer("covariance", torch.from_numpy(parameters["cov_pris_param"]))

    def forward(self, images: Tensor) -> Tensor:
        """Minus `distance`: higher is better."""
        return -self.distance(images)

    def distance(self, images: Tensor) -> Tensor:
        """The published value: natural photos have 2 to 5, distorted ones more; lower is better.

        Args:
            images: ``(B, 3, H, W)`` floating, sRGB in [0, 1], at least two blocks of 96 x 96 pixels; what is left over
                to the right and below is not seen.

        Returns:
            ``(B,)`` float64; `UNTEXTURED` for an image with fewer than two textured blocks.

        Raises:
            ValueError: images are anything else.
        """
        image_io.check(images)
        rows, columns = (side // BLOCK for side in images.shape[2:])
        if rows * columns < 2:
            raise ValueError(
                f"images: NIQE needs two blocks of {BLOCK} x {BLOCK} px or more, got {tuple(images.shape[2:])}"
            )
        return in_chunks(self._distance, images[:, :, : rows * BLOCK, : columns * BLOCK])

    def _distance(self, images: Tensor) -> Tensor:
        *weights, black = _LUMINANCE[self.luminance]
        luminance = round_straight_through(weighted(images, weights) + black)
        coarse, fine = self._features(halve(luminance), BLOCK // 2), self._features(luminance, BLOCK)
        textured = (fine[1] & coarse[1])[..., None]  # (B, blocks, 1)
        features = torch.where(textured, torch.cat([fine[0], coarse[0]], 2), 0.0)
        count = textured.sum(1)  # (B, 1)
        mean = features.sum(1) / count.clamp(min=1)
        centred = (features - mean[:, None]) * textured
        covariance = centred.mT @ centred / (count - 1).clamp(min=1)[..., None]
        apart = self.mean - mean
        # The published pseudoinverse is the inverse: natural photos' covariance has full rank.
        solved = torch.linalg.solve((self.covariance + covariance) / 2, apart)
        measured = count[:, 0] >= 2
        return torch.where(measured, (apart * solved).sum(1), UNTEXTURED**2).sqrt()

    def _features(self, luminance: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """(B, H, W) -> 18 features of each block (B, blocks, 18), and whether it has texture (B, blocks)."""
        normalised = mscn(luminance, self.taps, constant=1.0, flat=1e-6)
        blocks = normalised.unflatten(2, (-1, block)).unflatten(1, (-1, block)).transpose(2, 3).flatten(1, 2)
        products = [blocks * blocks.roll(shift, (2, 3)) for shift in _SHIFTS]
        fit = fit_aggd(torch.stack([blocks, *products], 2).flatten(3))  # fields (B, blocks, 5)
        scale = gamma_ratio(fit.shape, 1, 3).sqrt()
        left, right = fit.left * scale, fit.right * scale
        own = torch.stack([fit.shape[..., 0], (left + right)[..., 0] / 2], -1)
        pairs = torch.stack([fit.shape, (right - left) * gamma_ratio(fit.shape, 2, 1), left, right], -1)[..., 1:, :]
        return torch.cat([own, pairs.flatten(2)], 2), fit.usable.all(-1)


def halve(luminance: Tensor) -> Tensor:
    """(B, H, W), even sides -> (B, H/2, W/2), as MATLAB's ``imresize(x, 0.5)``: cubic, antialiased, mirrored edges."""
    return _halve_last(_halve_last(luminance.mT).mT)


def _halve_last(values: Tensor) -> Tensor:
    mirrored = torch.cat([values[..., :3].flip(-1), values, values[..., -3:].flip(-1)], -1)
    half = values.shape[-1] // 2
    parts = [weight * mirrored[..., tap : tap + 2 * half : 2] for tap, weight in enumerate(_HALVING)]
    return torch.stack(parts).sum(0)

"""Windows of an image that a distortion may be found in (MP-IQE, equation 10).

Source: Pan et al., "Multi-Modal Prompt Learning on Blind Image Quality Assessment" (2024).
"""

import torch.nn.functional as F
from torch import Tensor


def window_features(patches: Tensor, grid: tuple[int, int], windows: int) -> Tensor:
    """The greatest value of each channel in windows of the image (MP-IQE, section on window-distortion alignment).

    Args:
        patches: ``(B, P, E)``, row by row.
        grid: rows and columns of patches; P is their product.
        windows: per side, w.

    Returns:
        ``(B, w * w, E)``.
    """
    plane = patches.transpose(1, 2).unflatten(2, grid)  # (B, E, rows, columns)
    return F.adaptive_max_pool2d(plane, windows).flatten(2).transpose(1, 2)


def window_weights(cosines: Tensor, temperature: float) -> Tensor:
    """How much each window counts for each distortion: the softmax over windows in equation 10; sums to 1 over them.

    Args:
        cosines: ``(B, W, D)``.
        temperature: T-bar.
    """
    return (cosines / temperature).softmax(1)


def gather_windows(cosines: Tensor, temperature: float) -> Tensor:
    """``z`` of equation 10: the mean over windows, weighted towards those that a distortion is most likely in.

    The paper prints the symbols of scenes and of image features in the place of those of distortions and of windows.

    Args:
        cosines: ``(B, W, D)`` between windows and distortions.
        temperature: T-bar.

    Returns:
        ``(B, D)`` within [-1, 1].
    """
    return (window_weights(cosines, temperature) * cosines).sum(1)

"""Params as an approximate sidecar for Adobe Camera Raw and Lightroom (XMP, namespace ``crs:``).

No other program has this ISP, so a sidecar is an approximation, and nothing here has been compared with Adobe's own
renderings. What becomes of each parameter (settings of Camera Raw's process version 2012 and later):

- *On gray exact at 18 points, to 8 bits; on colours approximate:* highlights, shadows, the tone curve and contrast
  become, together, the point curve ``ToneCurvePV2012``. Camera Raw's own sliders of these names adapt to the picture
  and are left alone.
- *Exact in which white becomes neutral:* temperature and tint become ``Temperature`` (kelvin) and ``Tint``, computed
  through the camera's colour matrix. That needs a raw file with white balance and matrix; they are dropped otherwise.
- *Approximate:* exposure becomes ``Exposure2012``, in EV too, but Camera Raw rolls highlights off. Saturation and
  vibrance keep their share of the range; denoising and sharpening too, whose strength there has no published scale.
- *Dropped:* hue, which has no counterpart for a whole picture.

The *render error* that a sidecar states is that of `emulate`: what a program would be off by that did just what the
settings say, from this ISP's default. Camera Raw starts from a camera profile with a tone curve of its own, which is
a larger difference, and not part of it.

Camera Raw reads ``NAME.xmp`` beside proprietary raw files; a DNG it expects to hold the settings itself, so for one
the sidecar must be copied into it (ExifTool does).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from attriqa.files import atomic_path
from attriqa_envs.export.params import one_vector
from attriqa_envs.isp import KEYS, render, table_hash
from attriqa_envs.isp.color import LUMINANCE, SRGB_TO_XYZ, decode
from attriqa_envs.isp.difference import delta_e, psnr
from attriqa_envs.raw.color import apply_matrix
from attriqa_envs.raw.sensor import RawMetadata, normalized_gains

Floats = NDArray[np.float64]

_TO_XYZ = SRGB_TO_XYZ.numpy()
_TINT_PER_UV = 3000.0  # Camera Raw's tint per distance to the Planckian locus in CIE 1960 uv, greenish whites above 0
_WARMEST, _COLDEST = 1e6 / 1700, 1e6 / 15_000  # mired, where `_locus` holds
_TONE = ("highlights", "shadows", *(key for key in KEYS if key.startswith("tone_")), "contrast")
_KNOTS = (*range(0, 255, 15), 255)  # of the point curve
_SHARES = {  # setting, and its value at a parameter of 1
    "saturation": ("Saturation", 100),
    "vibrance": ("Vibrance", 100),
    "luma_denoise": ("LuminanceSmoothing", 100),
    "chroma_denoise": ("ColorNoiseReduction", 100),
    "sharpen_amount": ("Sharpness", 75),
}


@dataclass(frozen=True)
class Camera:
    """What white balance in kelvin depends on.

    Attributes:
        shot: ``(3,)`` as-shot gains of red, green and blue.
        daylight: ``(3,)`` the gains that make D65 neutral.
        to_srgb: ``(3, 3)`` white balanced camera RGB -> linear sRGB.
    """

    shot: Floats
    daylight: Floats
    to_srgb: Floats

    def white(self, gains: Floats) -> tuple[float, float]:
        """Temperature in kelvin and tint of the light that ``gains`` ``(3,)`` of linear sRGB render as neutral."""
        neutral: Floats = np.linalg.solve(self.to_srgb, 1 / gains) / self.shot
        return kelvin_and_tint(_TO_XYZ @ self.to_srgb @ (neutral * self.daylight))

    def balance(self, kelvin: float, tint: float) -> Floats:
        """``(3, 3)`` linear sRGB as shot -> as balanced for another light, the luminance of gray kept."""
        white = np.linalg.solve(_TO_XYZ, white_xyz(kelvin, tint))
        neutral = np.linalg.solve(self.to_srgb, white) / self.daylight
        scale = self.to_srgb @ np.diag(1 / (neutral * self.shot)) @ np.linalg.inv(self.to_srgb)
        matrix: Floats = scale / (np.array(LUMINANCE) @ scale @ np.ones(3))
        return matrix


@dataclass(frozen=True)
class Sidecar:
    """Settings of Camera Raw.

    Attributes:
        settings: by name, without ``crs:``.
        curve: the point curve, (input, output) of 0 to 255, both ascending.
        dropped: parameters off their default that no setting stands for.
    """

    settings: Mapping[str, float]
    curve: tuple[tuple[int, int], ...]
    dropped: tuple[str, ...]


def camera_of(metadata: RawMetadata) -> Camera | None:
    """The camera of a raw file; `None` where the file does not tell enough, or is none.

    The file is opened for its daylight gains, which the metadata do not hold.
    """
    if metadata.kind != "raw" or metadata.matrix_source != "file" or metadata.white_balance_source != "as shot":
        return None
    import rawpy

    with rawpy.imread(metadata.path) as raw:
        daylight = normalized_gains(raw.daylight_whitebalance)
    if daylight is None:
        return None
    return Camera(np.array(metadata.white_balance), np.array(daylight), np.array(metadata.camera_to_srgb))


def kelvin_and_tint(xyz: Floats) -> tuple[float, float]:
    """Correlated colour temperature, within 1,700 to 15,000 K, and tint of a light ``(3,)`` in XYZ."""
    point = _uv(xyz)
    nearest = minimize_scalar(
        lambda mired: float(np.square(point - _locus(1e6 / mired)).sum()),
        bounds=(_COLDEST, _WARMEST),
        method="bounded",
        options={"xatol": 1e-4},
    )
    kelvin = 1e6 / float(nearest.x)
    return kelvin, float((point - _locus(kelvin)) @ _across(kelvin)) * _TINT_PER_UV


def white_xyz(kelvin: float, tint: float) -> Floats:
    """The inverse of `kelvin_and_tint`: XYZ ``(3,)`` with Y of 1."""
    u, v = _locus(kelvin) + _across(kelvin) * tint / _TINT_PER_UV
    return np.array([1.5 * u / v, 1.0, (4 - u - 10 * v) / (2 * v)])


def _uv(xyz: Floats) -> Floats:
    x, y, z = xyz.tolist()
    uv: Floats = np.array([4 * x, 6 * y]) / (x + 15 * y + 3 * z)
    return uv


def _locus(kelvin: float) -> Floats:
    """The Planckian locus in CIE 1960 uv (Krystek 1985, "An algorithm to calculate correlated colour temperature")."""
    t = kelvin
    u = (0.860117757 + 1.54118254e-4 * t + 1.28641212e-7 * t**2) / (1 + 8.42420235e-4 * t + 7.08145163e-7 * t**2)
    v = (0.317398726 + 4.22806245e-5 * t + 4.20481691e-8 * t**2) / (1 - 2.89741816e-5 * t + 1.61456053e-7 * t**2)
    return np.array([u, v])


def _across(kelvin: float) -> Floats:
    """The unit vector at right angles to the locus, towards green."""
    u, v = (_locus(kelvin * 1.001) - _locus(kelvin * 0.999)).tolist()
    across: Floats = np.array([-v, u]) / math.copysign(math.hypot(u, v), u)
    return across


def to_camera_raw(params: Tensor, camera: Camera | None = None) -> Sidecar:
    """The settings for one picture's params.

    Args:
        params: ``(P,)`` physical.
        camera: of a raw file, see `camera_of`; without one, temperature and tint are dropped.

    Raises:
        ValueError: as `attriqa_envs.isp.parameters.check_params`, or there is more than one vector.
    """
    p = dict(zip(KEYS, one_vector(params).double().tolist(), strict=True))
    settings = {"Exposure2012": round(p["exposure"], 2)}
    settings |= {name: round(full * p[key]) for key, (name, full) in _SHARES.items()}
    settings["SharpenRadius"] = round(2 ** p["sharpen_radius"], 1)
    dropped = ["hue"] if p["hue"] else []
    if camera is None:
        dropped += [key for key in ("temperature", "tint") if p[key]]
    elif p["temperature"] or p["tint"]:
        kelvin, tint = camera.white(_gains(params))
        settings |= {"Temperature": round(kelvin), "Tint": round(tint)}
    return Sidecar(settings, _curve(params), tuple(dropped))


def _only(params: Tensor, *keys: str) -> Tensor:
    """``(1, P)`` float64 with all but some parameters at zero."""
    kept = torch.tensor([key in keys for key in KEYS])
    return (params.detach().cpu().double() * kept)[None]


def _gains(params: Tensor) -> Floats:
    """What the ISP's white balance multiplies red, green and blue by, read off a dark gray that nothing clips."""
    gray = torch.full((1, 3, 1, 1), 0.02, dtype=torch.float64)
    balanced = decode(render(gray, _only(params, "temperature", "tint")))
    return (balanced / decode(render(gray, _only(params))))[0, :, 0, 0].numpy()


def _curve(params: Tensor) -> tuple[tuple[int, int], ...]:
    """What the tone stages make of grays; the soft clip, which Camera Raw has not, is taken out."""
    display = torch.tensor(_KNOTS, dtype=torch.float64) / 255
    grays = decode(display).expand(1, 3, 1, -1)
    change = (render(grays, _only(params, *_TONE)) - render(grays, _only(params)))[0, 0, 0]
    outputs = np.maximum.accumulate(((display + change).clamp(0, 1) * 255).round().numpy())
    return tuple((knot, int(output)) for knot, output in zip(_KNOTS, outputs, strict=True))


def emulate(linear: Tensor, sidecar: Sidecar, camera: Camera | None = None) -> Tensor:
    """What the settings say, done by this ISP: white balance in camera RGB, and the point curve on each channel.

    Args:
        linear: ``(B, 3, H, W)`` linear light.
        sidecar: of `to_camera_raw`.
        camera: that it was made with.

    Returns:
        ``(B, 3, H, W)`` sRGB in [0, 1].

    Raises:
        ValueError: the settings have a temperature, and there is no camera.
    """
    settings = sidecar.settings
    if "Temperature" in settings:
        if camera is None:
            raise ValueError("camera: expected the one that the settings were made with, got none")
        matrix = torch.from_numpy(camera.balance(settings["Temperature"], settings["Tint"]))
        linear = apply_matrix(linear, matrix).clamp(min=0)
    values = {"exposure": settings["Exposure2012"], "sharpen_radius": math.log2(settings["SharpenRadius"])}
    values |= {key: settings[name] / full for key, (name, full) in _SHARES.items()}
    params = torch.tensor([[values.get(key, 0.0) for key in KEYS]]).expand(len(linear), -1)
    picture = render(linear, params.to(linear.device))
    places, outputs = (np.array(axis) / 255 for axis in zip(*sidecar.curve, strict=True))
    curved = np.interp(picture.numpy(force=True), places, outputs)
    return torch.from_numpy(curved).to(picture)


@torch.no_grad()
def render_error(linear: Tensor, params: Tensor, sidecar: Sidecar, camera: Camera | None = None) -> dict[str, float]:
    """How far `emulate` is from the tuned picture: ``psnr`` in dB, and the mean CIEDE2000 ``delta_e``.

    Args:
        linear: ``(3, H, W)`` linear light of the picture.
        params: ``(P,)`` its params.
        sidecar: made of them.
        camera: that it was made with.
    """
    wanted = render(linear.float()[None], params.float()[None].to(linear.device))
    got = emulate(linear.float()[None], sidecar, camera)
    return {"psnr": float(psnr(got, wanted)[0]), "delta_e": float(delta_e(got, wanted)[0])}


def write_xmp(
    path: Path | str, sidecar: Sidecar, *, source: str = "", error: Mapping[str, float] | None = None
) -> None:
    """Write the sidecar, whole or not at all; an existing one is replaced, whatever else it holds.

    Args:
        path: of the new file; programs look for ``NAME.xmp`` beside ``NAME.nef``.
        sidecar: what it says.
        source: the raw file's name.
        error: `render_error`, which goes into the file.
    """
    fields: dict[str, Any] = {"crs:Version": "15.0", "crs:ProcessVersion": "11.0", "crs:HasSettings": "True"}
    fields["crs:AlreadyApplied"] = "False"
    if source:
        fields["crs:RawFileName"] = source
    fields["crs:WhiteBalance"] = "Custom" if "Temperature" in sidecar.settings else "As Shot"
    signed = ("Exposure2012", "SharpenRadius", "Tint", "Saturation", "Vibrance")
    for name, value in sidecar.settings.items():
        sign = "+" if name in signed and value > 0 else ""
        fields[f"crs:{name}"] = f"{sign}{value:.2f}" if name == "Exposure2012" else f"{sign}{value:g}"
    plain = all(before == after for before, after in sidecar.curve)
    fields["crs:ToneCurveName2012"] = "Linear" if plain else "Custom"
    fields["attriqa:IspTable"] = table_hash()
    fields["attriqa:Dropped"] = " ".join(sidecar.dropped)
    for name, value in (error or {}).items():
        fields[f"attriqa:RenderError_{name}"] = f"{value:.3f}"
    attributes = "\n".join(f"   {name}={quoteattr(str(value))}" for name, value in fields.items())
    points = "\n".join(f"     <rdf:li>{before}, {after}</rdf:li>" for before, after in sidecar.curve)
    text = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="attriqa">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmlns:attriqa="urn:attriqa:isp"
{attributes}>
   <crs:ToneCurvePV2012>
    <rdf:Seq>
{points}
    </rdf:Seq>
   </crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

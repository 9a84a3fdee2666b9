"""Renderings as files: params that render the same picture again, and a LUT for other programs."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attriqa.files import atomic_path, write_json
from attriqa_envs.isp import ISP_VERSION, KEYS, PARAMETERS, check_params, render, table_hash
from attriqa_envs.isp.color import decode

_FORMAT = "attriqa-isp-params"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save_params(path: Path | str, params: Tensor, *, source: str = "") -> None:
    """Write the params of one rendering as JSON, from which `load_params` reads the same bits.

    Args:
        path: of the new file.
        params: ``(P,)`` physical values; half precision is written as float32, which loses nothing.
        source: the picture they are for, as its file name.

    Raises:
        ValueError: as `attriqa_envs.isp.parameters.check_params`, or there is more than one vector.
    """
    values = one_vector(params)
    record = {
        "format": _FORMAT,
        "isp_version": ISP_VERSION,
        "table": table_hash(),
        "dtype": str(values.dtype).removeprefix("torch."),
        "source": source,
        "params": dict(zip(KEYS, values.tolist(), strict=True)),  # a float's repr reads back as the same float
    }
    write_json(path, record)


def load_params(path: Path | str) -> Tensor:
    """Read what `save_params` wrote: ``(P,)`` on the CPU, of the dtype that was saved.

    Raises:
        ValueError: the file is not such a file, is damaged, or was written for another table of parameters.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{path}: expected a file with format {_FORMAT!r}")
    if record.get("table") != table_hash():
        mine, theirs = f"version {ISP_VERSION}, table {table_hash()}", f"version {record.get('isp_version')}, table "
        raise ValueError(f"{path}: written for another ISP ({theirs}{record.get('table')}) than this one ({mine})")
    values = record.get("params")
    if not isinstance(values, dict) or sorted(values) != sorted(KEYS) or not all(map(_is_number, values.values())):
        raise ValueError(f"{path}: params: expected a number for each of {', '.join(KEYS)}")
    if record.get("dtype") not in _DTYPES:
        raise ValueError(f"{path}: dtype: expected one of {', '.join(_DTYPES)}, got {record.get('dtype')!r}")
    params = torch.tensor([float(values[key]) for key in KEYS], dtype=_DTYPES[record["dtype"]])
    try:
        check_params(params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return params


def write_cube(path: Path | str, params: Tensor, *, size: int = 33) -> None:
    """Write the pointwise stages, exposure to hue, as a 3D LUT in the ``.cube`` format (Adobe, version 1.0).

    It maps the plain sRGB encoding of the linear picture, clipped at white, to the tuned picture. What a LUT cannot
    hold is missing: denoising, sharpening, and the headroom above white that exposure and highlights may bring back.
    The rest is exact at the grid's points; between them, at 33 points and usual params, photos differ by less than 0.5
    of 255 on average and 8 of 255 in 99 of 100 values. Most of it is near black and near the border of the gamut.

    Args:
        path: of the new file; programs look for ``.cube``.
        params: ``(P,)`` physical values; the comments of the file list those it holds.
        size: points per side, 2 to 256; 33 is what most programs take.
    """
    values = one_vector(params)
    if not 2 <= size <= 256:
        raise ValueError(f"size: expected 2 to 256 points per side, got {size}")
    pointwise = torch.tensor([p.stage != "detail" for p in PARAMETERS])
    grid = decode(torch.linspace(0, 1, size, dtype=torch.float64))
    blue, green, red = torch.meshgrid(grid, grid, grid, indexing="ij")  # red changes fastest
    colours = torch.stack((red, green, blue)).reshape(1, 3, size, -1)
    table = render(colours, (values.double() * pointwise)[None])[0].reshape(3, -1).T
    lines = ['TITLE "attriqa ISP"', f"# table {table_hash()}, input: sRGB, clipped at white"]
    lines += [f"# {p.key} {value:g} {p.unit}" for p, value in zip(PARAMETERS, values.tolist(), strict=True)
              if p.stage != "detail"]  # fmt: skip
    lines += [f"LUT_3D_SIZE {size}", "DOMAIN_MIN 0 0 0", "DOMAIN_MAX 1 1 1"]
    lines += [f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in table.tolist()]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def one_vector(params: Tensor) -> Tensor:
    """One picture's params ``(P,)``, checked, on the CPU and in at least float32.

    Raises:
        ValueError: as `attriqa_envs.isp.parameters.check_params`, or there is more than one vector.
    """
    check_params(params)
    if params.ndim != 1:
        raise ValueError(f"params: expected one picture's, ({len(KEYS)},), got shape {tuple(params.shape)}")
    values = params.detach().cpu()
    return values if values.dtype in _DTYPES.values() else values.float()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

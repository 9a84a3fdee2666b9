"""Small folders in the layouts of the public data sets. The images are no pictures: readers do not open them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io

KADID_SCORES = {"I01_01_01.png": 4.57, "I01_07_05.png": 1.93, "I02_25_03.png": 4.29, "I81_10_02.png": 3.5}
TID_SCORES = {"I01_01_1.bmp": 5.51429, "i01_24_5.bmp": 3.0, "I25_08_3.bmp": 0.24242, "i25_10_4.BMP": 7.2143}
CSIQ_SCORES = {  # name -> (type in the sheet, DMOS)
    "1600.AWGN.1.png": ("noise", 0.062),
    "1600.BLUR.5.png": ("blur", 0.9),
    "1600.contrast.2.png": ("contrast", 0.201),
    "aerial_city.fnoise.3.png": ("fnoise", 0.5),
    "aerial_city.JPEG.4.png": ("jpeg", 0.0),
    "aerial_city.jpeg2000.4.png": ("jpeg 2000", 1.0),
}
LIVE_COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
LIVE_RATED = {  # name -> (DMOS, reference)
    "jp2k/img2.bmp": (15.5, "studentsculpture.bmp"),
    "jp2k/img227.bmp": (-2.64, "bikes.bmp"),
    "jpeg/img1.bmp": (50.0, "bikes.bmp"),
    "wn/img174.bmp": (111.77, "woman.bmp"),
    "fastfading/img174.bmp": (60.0, "woman.bmp"),
}
LIVE_LEVELS = {name: 0.5 + number for number, name in enumerate(LIVE_RATED)}


def build(name: str, root: Path) -> Path:
    """The small copy of any set but CLIVE, by the name of its reader."""
    built: Path = globals()[name](root)
    return built


def touch(root: Path, *names: str) -> None:
    """Files with their own names in them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sheet(
    path: Path, columns: Mapping[str, Sequence[Any]], name: str = "Sheet1", row: int = 0, column: int = 0
) -> None:
    """An Excel file; ``row`` and ``column`` are empty ones before the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({key: list(values) for key, values in columns.items()}, dtype=object)
    frame.to_excel(path, sheet_name=name, startrow=row, startcol=column, index=False)


def koniq(root: Path, size: str = "1024x768") -> Path:
    """Four photos; both label files."""
    names = [f"{i}00.jpg" for i in range(1, 5)]
    touch(root / size, *names)
    counts = "0.0,0.0,0.25,0.65,0.1,100"
    sets = zip(names, (77.38, 3.92, 88.38, 50), ("training", "test", "training", "validation"), strict=True)
    text(
        root / "koniq10k_distributions_sets.csv",
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set",
        *(f"{name},{counts},{mos},0.5,{side}" for name, mos, side in sets),
    )
    both = zip(names, (3.83, 1.1, 4.31, 3.0), (77.38, 3.92, 88.38, 50), strict=True)
    text(
        root / "koniq10k_scores_and_distributions.csv",
        '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"',
        *(f'"{name}",{counts},{mos},0.5,{scaled}' for name, mos, scaled in both),
    )
    return root


def spaq(root: Path, noisiness: Sequence[float] = (60, 80, 20)) -> Path:
    touch(root / "TestImage", "00001.jpg", "00002.jpg", "00003.jpg")
    columns: dict[str, Sequence[Any]] = {"Image name": ["00001.jpg", "00002.jpg", "00003.jpg"], "MOS": [48.86, 62.5, 2]}
    columns |= {"Brightness": [50, 51, 52], "Colorfulness": [40, 41, 42], "Contrast": [30, 31, 32]}
    columns |= {"Noisiness": noisiness, "Sharpness": [10, 11, 12]}
    sheet(root / "Annotations" / "MOS and Image attribute scores.xlsx", columns)
    return root


def flive(root: Path, small: str = "labels=640_padded.csv", large: str = "labels640.csv") -> Path:
    names = [
        "voc_emotic_ava/JPEGImages__1.jpg",
        "voc_emotic_ava/AVA__2.jpg",
        "blur_dataset/motion3.jpg",
        "EE371R/4.jpg",
    ]
    touch(root / "database", *names)
    rows = (f"{name},{mos}" for name, mos in zip(names, (0, 94.3, 75.4, 60), strict=True))
    text(root / "labels_image.csv", "name,mos", *rows)
    text(root / small, "name_image,mos_image,is_valid", f"{names[0]},0,False", f"{names[2]},75.4,True")
    text(root / large, "name_image,mos_image", f"{names[1]},94.3")
    return root


def ava(root: Path, folder: str = "images") -> Path:
    touch(root / folder, "953619.jpg", "953958.jpg", "954184.jpg")
    text(
        root / "AVA.txt",
        "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396",
        "2 953958 10 0 0 0 0 0 0 0 0 0 15 21 1396",
        "3 954184 0 0 0 0 0 0 0 0 1 3 0 0 1396",
    )
    text(root / "aesthetics_image_lists" / "generic_test.jpgl", "954184", "999999")
    return root


def bid(root: Path, folder: str = ".") -> Path:
    touch(root / folder, "DatabaseImage0001.JPG", "DatabaseImage0586.JPG")
    columns: dict[str, Sequence[Any]] = {"Image Number": [1, 586], "Average Subjective Grade": [0.16, 4.92]}
    sheet(root / "DatabaseGrades.xlsx", columns | {"std": [0.1, 0.2]})
    return root


def kadid(root: Path) -> Path:
    touch(root / "images", *KADID_SCORES, "I01.png", "I02.png", "I81.png")
    rows = (f"{name},{name[:3]}.png,{score},0.5" for name, score in KADID_SCORES.items())
    text(root / "dmos.csv", "dist_img,ref_img,dmos,var", *rows)
    return root


def tid2013(root: Path) -> Path:
    """Its files in the cases that copies have them in, not those of the label file."""
    touch(root / "distorted_images", "i01_01_1.bmp", "i01_24_5.bmp", "I25_08_3.BMP", "i25_10_4.bmp")
    touch(root / "reference_images", "I01.BMP", "i25.bmp")
    text(root / "mos_with_names.txt", *(f"{score} {name}" for name, score in TID_SCORES.items()))
    return root


def csiq(root: Path, labels: str = "csiq.DMOS.xlsx", case: str = "official") -> Path:
    """With one of the three label files; ``case`` of the folders: official, lower, or flat for all in one."""
    for name in CSIQ_SCORES:
        folder = name.split(".")[1]
        folder = "dst_imgs_all" if case == "flat" else f"dst_imgs/{folder.lower() if case == 'lower' else folder}"
        touch(root / folder, name)
    touch(root / "src_imgs", "1600.png", "aerial_city.png")
    if labels == "csiq_label.txt":
        text(root / labels, *(f"{name} {score}" for name, (_, score) in CSIQ_SCORES.items()))
    elif labels == "CSIQ.txt":
        rows = (f"CSIQ/dst_imgs/x/{name},x,CSIQ/src_imgs/x.png,{score}" for name, (_, score) in CSIQ_SCORES.items())
        text(root / labels, "dis_img_path,dis_type,ref_img_path,score", *rows)
    else:
        refs = [name.split(".")[0] for name in CSIQ_SCORES]
        columns: dict[str, Sequence[Any]] = {
            "image": [int(ref) if ref.isdigit() else ref for ref in refs],
            "dst_idx": [1, 5, 6, 4, 2, 3],
            "dst_type": [kind for kind, _ in CSIQ_SCORES.values()],
            "dst_lev": [int(name.split(".")[2]) for name in CSIQ_SCORES],
            "dmos_std": [0.1] * len(refs),
            "dmos": [score for _, score in CSIQ_SCORES.values()],
        }
        sheet(root / labels, columns, "all_by_image", row=3, column=3)
    return root


def cells(names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.object_]]:
    """A MATLAB cell array (1, N) of strings."""
    array = np.empty((1, len(names)), dtype=object)
    for index, name in enumerate(names):
        array[0, index] = np.array([name])
    return array


def live(
    root: Path,
    rated: Mapping[str, tuple[float, str]] = LIVE_RATED,
    parameters: Mapping[str, float] = LIVE_LEVELS,
) -> Path:
    """``rated``: DMOS and reference of images such as ``jp2k/img2.bmp``; all others count as copies of references."""
    names = [f"{kind}/img{i}.bmp" for kind, count in LIVE_COUNTS.items() for i in range(1, count + 1)]
    scores = np.array([[rated.get(name, (0.0, ""))[0] for name in names]])
    copies = np.array([[name not in rated for name in names]], dtype=np.uint8)
    refs = [rated.get(name, (0.0, "bikes.bmp"))[1] for name in names]
    root.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / "dmos_realigned.mat", {"dmos_new": scores, "orgs": copies})
    scipy.io.savemat(root / "refnames_all.mat", {"refnames_all": cells(refs)})
    touch(root, *rated)
    touch(root / "refimgs", *{ref for _, ref in rated.values()})
    for kind in LIVE_COUNTS if parameters else ():
        mine = [(name, value) for name, value in parameters.items() if name.startswith(f"{kind}/")]
        text(root / kind / "info.txt", *(f"{rated[name][1]} {name.split('/')[1]} {value} " for name, value in mine))
    return root


def pipal(root: Path, merged: bool = False) -> Path:
    touch(root / ("Dist_Imgs" if merged else "Distortion_1"), "A0001_00_00.bmp", "A0001_06_10.bmp")
    touch(root / ("Dist_Imgs" if merged else "Distortion_4"), "A0185_02_01.bmp")
    touch(root / "Train_Ref", "A0001.bmp", "A0185.bmp")
    text(root / "Train_Label" / "A0001.txt", "A0001_00_00.bmp,1520.0648", "A0001_06_10.bmp,1437.0798")
    text(root / "Train_Label" / "A0185.txt", "A0185_02_01.bmp,916.7136")
    return root


def lvq(root: Path) -> Path:
    """Three frames of two reference videos."""
    frames = {"v1_smoke_2/0001.png": "refs/v1/0001.png", "v1_noise_4/0002.png": "refs/v1/0002.png"}
    frames |= {"v2_smoke_1/0001.png": "refs/v2/0001.png"}
    touch(root, *frames, *frames.values())
    rows = (f"{frame},{ref},smoke,{frame[9]},{i}.5" for i, (frame, ref) in enumerate(frames.items()))
    text(root / "manifest.csv", "frame,ref,distortion,level,mos", *rows)
    return root


def agiqa(root: Path) -> Path:
    touch(root, "AttnGAN_normal_000.jpg", "sd1.5_lowstep_001.jpg")
    text(
        root / "data.csv",
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align",
        '"AttnGAN_normal_000.jpg","a cat, sitting",,,,0.19,0.9,0.5,0.7',
        '"sd1.5_lowstep_001.jpg","a cat, sitting",,,,4.489,0.9,0.5,0.7',
    )
    return root

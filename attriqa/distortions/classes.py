"""MP-IQE's classes of scenes and distortions, as its texts name them."""

from collections.abc import Mapping

# LIQE's word for a class -> MP-IQE's, in the order of MP-IQE.
SCENES: Mapping[str, str] = {
    "animal": "animal",
    "cityscape": "cityscape",
    "human": "human",
    "indoor": "indoor scene",
    "landscape": "landscape",
    "night": "night scene",
    "plant": "plant",
    "still_life": "still-life",
    "others": "others",
}
DISTORTIONS: Mapping[str, str] = {
    "blur": "blur",
    "color": "color-related",
    "contrast": "contrast",
    "jpeg compression": "JPEG compression",
    "jpeg2000 compression": "JPEG2000 compression",
    "noise": "noise",
    "overexposure": "over-exposure",
    "quantization": "quantization",
    "underexposure": "under-exposure",
    "spatial": "spatially-localized",
    "other": "others",
}

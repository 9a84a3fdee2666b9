"""What papers and data sets call distortions and scenes."""

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

TID2013_TYPES = (
    "additive_gaussian_noise", "color_component_noise", "spatially_correlated_noise", "masked_noise",
    "high_frequency_noise", "impulse_noise", "quantization_noise", "gaussian_blur", "denoising", "jpeg", "jpeg2000",
    "jpeg_transmission_errors", "jpeg2000_transmission_errors", "non_eccentricity_pattern", "local_block_wise",
    "mean_shift", "contrast_change", "saturation_change", "multiplicative_noise", "comfort_noise",
    "lossy_compression_of_noisy_images", "color_quantization_with_dither", "chromatic_aberrations", "sparse_sampling",
)  # fmt: skip
CSIQ_TYPES = ("AWGN", "BLUR", "contrast", "fnoise", "JPEG", "jpeg2000")  # as file names say
LIVE_TYPES = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}  # images of each, references too

# A name of these sets, in lower case -> KADID-10k's key of the same distortion.
KADID_KEYS: Mapping[str, str] = {
    "additive_gaussian_noise": "white_noise",
    "color_component_noise": "white_noise_cc",
    "denoising": "denoise",
    "non_eccentricity_pattern": "non_eccentricity_patch",
    "local_block_wise": "color_block",
    "color_quantization_with_dither": "color_quantization",
    "awgn": "white_noise",
    "blur": "gaussian_blur",
    "contrast": "contrast_change",
    "jp2k": "jpeg2000",
    "wn": "white_noise",
    "gblur": "gaussian_blur",
}

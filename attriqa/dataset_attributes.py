"""The distortions of the synthetic data sets in words: KADID-10k's 25, and those of TID2013, CSIQ and LIVE.

ExIQA tunes CLIP on each of them. A distortion that KADID-10k has, too, has its attributes, so that what was learnt of
it on one data set counts on another; the others have attributes of their own.
"""

from dataclasses import replace

from attriqa.distortion_attributes import DISTORTION_ATTRIBUTES, DistortionAttributes, read_lines

_OTHERS = """
spatially_correlated_noise | Spatially correlated noise | noise that is alike in neighboring pixels is added
    soft blotches of noise that span several pixels; a cloudy, mottled pattern over even areas; large blurred
    grain; uneven patches of light and dark in flat regions; the look of coarse film grain out of focus
masked_noise | Masked noise | noise is added where texture hides it
    noise inside textured areas beside clean smooth ones; a rough, agitated look of grass and foliage; grain
    that gathers along edges; busy texture with hidden speckle; clean skies above noisy ground
high_frequency_noise | High frequency noise | noise of the highest spatial frequencies alone is added
    very fine noise that alternates from pixel to pixel; a tiny checkered shimmer on surfaces; delicate, dense
    grain without blotches; a fine-meshed screen over the scene; a crisp pixel-sized fizz
quantization_noise | Quantization noise | values are rounded to a few levels
    stepped tones with visible contours; false contour lines in smooth gradients; areas that snap to a few
    shades; ragged outlines of equal brightness; gradients that look like terraces
jpeg_transmission_errors | JPEG transmission errors | a JPEG stream is decoded with some of its bits wrong
    misplaced strips of the picture from broken data; rows of blocks in a wrong color; a sudden shift of part
    of the picture; corrupt stripes as from a damaged file; blocks that belong elsewhere
jpeg2000_transmission_errors | JPEG2000 transmission errors | a JPEG2000 stream is decoded with lost packets
    cloudy wavelet blotches from lost data; local smears and ripples as of a broken stream; patches that lose
    all sharpness; swirling ringing in a few places; ghostly stains over parts of the picture
saturation_change | Saturation change | the saturation of colors is raised or lowered
    an unnatural intensity of all colors; colors too pale or too strong for the scene; implausible tints of
    skin and sky; a color balance between gray and neon; colors as on a badly set television
comfort_noise | Comfort noise | texture is replaced by noise of the same look
    invented grain in place of true texture; surfaces with a plausible but wrong pattern; fine detail that was
    made up; a synthetic roughness of textures; texture that does not follow the object
lossy_compression_of_noisy_images | Lossy compression of noisy images | a noisy image is compressed
    noise smeared into blotches by compression; compressed grain with blocky remains; muddy specks around
    edges; a dirty, dappled surface of smooth areas; noise and compression artifacts together
chromatic_aberrations | Chromatic aberrations | color channels are moved against each other and blurred
    colored seams on high-contrast edges; purple and green outlines; color channels that do not meet; red on
    one side and cyan on the other of an edge; fringes as of a cheap lens
sparse_sampling | Sparse sampling and reconstruction | an image is rebuilt from few of its samples
    a reconstruction from too few samples; fine oblique hatching over the picture; detail replaced by a woven
    pattern; faint repeated structures around edges; texture lost in a regular haze
fnoise | Pink noise | noise whose power falls with frequency is added
    soft cloud-like noise of all sizes; a drifting, uneven brightness over flat areas; smoky veils of light and
    dark; low-frequency mottling; grain that is coarser than sensor noise
fastfading | Fast fading | a JPEG2000 stream went over a fading radio channel and lost bits
    blurred streaks where data was lost on air; wavy distortions of local areas; patches of strong ringing
    beside sound ones; dissolved contours as through hot air; dropouts of detail in parts of the picture
"""

_KADIDS = {  # names in a data set -> KADID-10k's key of the same distortion
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
_TID2013 = (
    "additive_gaussian_noise", "color_component_noise", "spatially_correlated_noise", "masked_noise",
    "high_frequency_noise", "impulse_noise", "quantization_noise", "gaussian_blur", "denoising", "jpeg", "jpeg2000",
    "jpeg_transmission_errors", "jpeg2000_transmission_errors", "non_eccentricity_pattern", "local_block_wise",
    "mean_shift", "contrast_change", "saturation_change", "multiplicative_noise", "comfort_noise",
    "lossy_compression_of_noisy_images", "color_quantization_with_dither", "chromatic_aberrations", "sparse_sampling",
)  # fmt: skip
_CSIQ = ("awgn", "blur", "contrast", "fnoise", "jpeg", "jpeg2000")
_LIVE = ("jp2k", "jpeg", "wn", "gblur", "fastfading")


def _table(keys: tuple[str, ...]) -> tuple[DistortionAttributes, ...]:
    known = {entry.key: entry for entry in (*DISTORTION_ATTRIBUTES, *read_lines(_OTHERS))}
    return tuple(replace(known[_KADIDS.get(key, key)], key=key) for key in keys)


DATASET_ATTRIBUTES = {
    "kadid": DISTORTION_ATTRIBUTES,
    "tid2013": _table(_TID2013),
    "csiq": _table(_CSIQ),
    "live": _table(_LIVE),
}
"""Data set, as `attriqa.datasets.READERS` calls it -> what its distortions look like, in its order."""

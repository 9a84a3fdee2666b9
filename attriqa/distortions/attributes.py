"""What distortions look like, in words: five attributes of each of the 25, as texts for a CLIP; tables of one's own.

Source: ExIQA, "Explainable Image Quality Assessment Using Distortion Attributes", the section on distortion attributes.
The paper had GPT-3 write the attributes and prints those of one distortion alone: the table here is our own.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

POSITIVE = "There is {} in the photo."
NEGATIVE = "There is not {} in the photo."  # the paper's wording, kept to the letter

_SENTENCE = re.compile(
    r"^(?:there\s+(?:is|are)\s+)?(.*?)(?:\s+in\s+the\s+(?:photo|image|picture))?\s*\.?$", re.I | re.S
)
_NUMBERED = re.compile(r"^\s*(\d+)\s*[-.):]\s*(.+?)\s*$")
_FIELDS = ("key", "name", "explanation", "attributes")


@dataclass(frozen=True)
class DistortionAttributes:
    """A distortion in words."""

    key: str  # as in `attriqa.distortions.DISTORTION_KEYS`, or of one's own
    name: str  # for people
    explanation: str  # how it is applied, one clause
    attributes: tuple[str, ...]  # what it looks like: noun phrases, to be set into `POSITIVE` and `NEGATIVE`


_BUILT_IN = """
gaussian_blur | Gaussian blur | every channel is filtered with a Gaussian kernel
    an overall soft and hazy blur; fuzzy edges without any crisp outline; a loss of fine texture and small
    detail; a gentle melting of neighboring tones into each other; a dreamy, low-resolution softness
lens_blur | Lens blur | every channel is averaged over a disk, as the aperture of a lens out of focus does
    an out-of-focus look as from a misfocused lens; round bokeh discs where small lights should be; a strong
    defocus of foreground and background alike; doubled, ring-shaped contours around thin lines; unreadable,
    defocused lettering
motion_blur | Motion blur | every channel is averaged along a straight line of random direction
    motion blur as from a shaking handheld camera; parallel streaks that run in a single direction; ghostly
    trails behind the edges of objects; a smear across edges along one direction only; an impression of fast
    movement during the exposure
color_diffusion | Color diffusion | the two color channels of CIELAB are blurred and amplified, while lightness stays
    color bleeding across the borders of objects; colored halos that spill over into the surroundings; a
    watercolor-like wash of color over sharp gray detail; glowing tints without clear boundaries; color smudges
    that ignore the shapes of objects
color_shift | Color shift | the green channel is moved by a few pixels and blended in near edges
    green and magenta fringes along edges; a misaligned color channel as in a misregistered print; chromatic
    aberration at high-contrast borders; a displaced green ghost of the outlines; a purple rim on one side of
    objects
color_quantization | Color quantization | colors are reduced to a small palette with error-diffusion dithering
    a limited palette of only a few colors; dithering patterns of scattered dots in smooth areas; the look of an
    old GIF with indexed colors; speckled transitions in place of smooth gradients; a loss of subtle hues and
    delicate skin tones
color_saturation_1 | Color saturation 1 | the saturation of HSV is multiplied by a small factor, down to gray and below
    faded, desaturated color; a nearly black-and-white appearance; dull gray skin, sky and vegetation;
    washed-out tints as in an aged print; a lack of vivid color
color_saturation_2 | Color saturation 2 | the two color channels of CIELAB are multiplied by a large factor
    oversaturated, neon-like color; garish red, green and blue surfaces; an exaggerated, cartoonish vividness;
    an unnatural orange or red cast on skin; flat patches of clipped, glaring color
jpeg2000 | JPEG2000 compression | the image is compressed as JPEG2000, by wavelets, at a high ratio
    wavelet compression ripples around edges; a smudgy loss of texture from heavy compression; soft blotches in
    place of fine detail; wavy ringing halos next to strong contours; a patchy mixture of blurred and sharp
    regions
jpeg | JPEG compression | the image is compressed as JPEG, in blocks of 8 by 8 pixels, at a low quality
    blocky compression squares; JPEG artifacts of a heavily compressed image; mosquito noise around text and
    sharp edges; a visible grid of block boundaries; coarse blocks of flat color in smooth sky or skin
white_noise | White noise | Gaussian noise is added to the red, green and blue channels
    grainy noise spread evenly over all areas; sensor noise as at a high ISO setting; random red, green and blue
    grain in flat regions; a rough, sandy texture on smooth surfaces; fine static like that of an untuned
    television
white_noise_cc | White noise in color component | Gaussian noise is added to the luma and chroma channels of YCbCr
    chroma noise with blotchy color specks; green and purple color grain in shadows; tinted speckle over gray
    and neutral areas; rainbow-colored pixel noise; unstable hue from one pixel to the next
impulse_noise | Impulse noise | random values of single pixels are set to zero or to the maximum
    salt-and-pepper noise; isolated black and white dots; single pixels of pure bright color scattered at
    random; dead and stuck pixels as of a faulty sensor; tiny sharp specks like dust on the picture
multiplicative_noise | Multiplicative noise | uniform noise in proportion to each pixel's value is added
    speckle noise that grows with brightness; a grainy texture on highlights beside clean shadows; noisy clouds
    and white surfaces; speckle as in a radar or ultrasound image; a coarse mottling of light-colored objects
denoise | Denoise | Gaussian noise is added and each channel is denoised again
    a waxy, plastic look of skin and surfaces; smeared texture from excessive noise reduction; painted-looking
    areas with remnants of noise; oversmoothed foliage, hair and fabric; blurry patches with worm-like residual
    grain
brighten | Brighten | a tone curve lifts the midtones and leaves black and white in place
    an overexposed, overly bright appearance; blown-out highlights without detail; a pale veil of light over
    shadows; whitish, bleached sky and faces; too much light over the whole scene
darken | Darken | a tone curve lowers the midtones and leaves black and white in place
    an underexposed, overly dark appearance; crushed shadows without visible detail; a gloomy mood as at dusk;
    objects that sink into blackness; too little light over the whole scene
mean_shift | Mean shift | one constant is added to all values of all channels
    a uniform offset of brightness everywhere; a grayish haze where deep black should be; dingy, grayed whites;
    an even veil over all tones; brightness that is wrong while contrast is not
jitter | Jitter | each pixel is moved by a small random offset, several times
    a frosted-glass look of contours; wavy, jagged edges as behind rippled glass; pixels displaced at random
    from their place; trembling, scrambled lines; a shredded look of fine detail
non_eccentricity_patch | Non-eccentricity patch | small square patches are copied to a place a few pixels away
    small square patches copied to a wrong place nearby; broken contours within little squares; repeated
    fragments of texture next to their origin; misplaced tiles like pieces of a puzzle; local jumps in otherwise
    straight lines
pixelate | Pixelate | the image is made smaller and enlarged again, both with the nearest neighbor
    large visible pixels; a mosaic of flat square cells; staircase edges on diagonal lines; the look of a tiny
    image that was enlarged; pixelation as in a censored face
quantization | Quantization | values are reduced to a few levels at thresholds of its own histogram
    posterization into a few brightness steps; banding in skies and gradual shadows; abrupt borders between
    areas of uniform tone; a poster-like or screen-print appearance; a loss of smooth shading on round objects
color_block | Color block | opaque squares of random color are pasted at random places
    solid colored squares pasted over the scene; random bright blocks that hide parts of objects; opaque square
    stickers at arbitrary places; uniform color tiles without any texture; occluding squares of unrelated color
high_sharpen | High sharpen | lightness is sharpened by unsharp masking of a large amount
    oversharpened edges with white and dark halos; a harsh, gritty exaggeration of texture; bright outlines
    drawn around objects; unnaturally crisp and crunchy detail; amplified grain from excessive sharpening
contrast_change | Contrast change | a tone curve shaped like an S raises or lowers the contrast of the midtones
    unnatural contrast between light and dark; flat, low-contrast tones in muted gray; harsh, high-contrast
    tones with clipped ends; an imbalanced spread of shadows, midtones and highlights; a stark or foggy
    rendering of the midtones
"""  # key | name | explanation; then the attributes, with semicolons between them


def read_lines(text: str) -> tuple[DistortionAttributes, ...]:
    """Read entries of two parts: ``key | name | explanation``, and, indented, attributes between semicolons."""
    table = []
    for block in re.split(r"\n(?=\w)", text.strip()):
        head, _, body = block.partition("\n")
        key, name, explanation = head.split(" | ")
        table.append(DistortionAttributes(key, name, explanation, tuple(" ".join(body.split()).split("; "))))
    return tuple(table)


DISTORTION_ATTRIBUTES = read_lines(_BUILT_IN)
"""The 25 of KADID-10k in its order, five attributes each."""


def sentences(attributes: Iterable[str]) -> tuple[list[str], list[str]]:
    """The positive and the negative text of each attribute, in the paper's templates `POSITIVE` and `NEGATIVE`.

    Args:
        attributes: noun phrases (``"a softening of details"``), or full sentences (``"There is a softening of details
            in the photo."``), of which the phrase is taken.

    Returns:
        ``(positives, negatives)``, as many as attributes each.

    Raises:
        ValueError: an attribute without words.
    """
    phrases = [_phrase(text) for text in attributes]
    return [POSITIVE.format(phrase) for phrase in phrases], [NEGATIVE.format(phrase) for phrase in phrases]


def _phrase(text: str) -> str:
    match = _SENTENCE.match(" ".join(text.split()))
    phrase = match[1] if match else ""
    if not phrase:
        raise ValueError(f"attributes: expected a noun phrase, got {text!r}")
    return phrase


def llm_query(name: str, explanation: str, count: int = 5) -> str:
    """What to ask a large language model for the attributes of a distortion; `parse_answer` reads the answer.

    Args:
        name: of the distortion.
        explanation: how it is applied, one clause.
        count: attributes to ask for, 1 to 7.

    Raises:
        ValueError: another ``count``.
    """
    example = (
        "dark corners and edges",
        "a gradual loss of light toward the frame",
        "a bright center like a spotlight",
        "a tunnel-like view",
        "uneven illumination of a plain background",
        "murky color near the borders",
        "an old-fashioned toy-camera look",
    )
    if not 1 <= count <= len(example):
        raise ValueError(f"count: expected 1 to {len(example)}, got {count}")
    listed = "\n".join(f"{number}- {phrase}" for number, phrase in enumerate(example[:count], 1))
    return (
        f"You know how image distortions look. Write {count} visual attributes that a person who sees a distorted "
        "photo could point at.\n"
        f'Each is a short noun phrase that fits into "{POSITIVE.format("...")}", says something different, describes '
        "the visible effect and not the method, and would be wrong for a pristine photo.\n"
        f"Answer with {count} numbered lines and nothing else.\n\n"
        f"Distortion: Vignetting: brightness falls from the center to the corners.\n{listed}\n\n"
        f"Distortion: {name.strip()}: {explanation.strip().rstrip('.')}.\n"
    )


def parse_answer(text: str, count: int = 5) -> tuple[str, ...]:
    """The attributes in a language model's answer to `llm_query`.

    Args:
        text: lines ``1- ...``, ``1. ...``, ``1) ...`` or ``1: ...``, numbered from 1; other lines are passed over.
        count: attributes that were asked for.

    Returns:
        Noun phrases; full sentences in the template are stripped of it.

    Raises:
        ValueError: more, fewer or otherwise numbered lines than ``count``, or one attribute twice.
    """
    lines = [match for line in text.replace("*", "").splitlines() if (match := _NUMBERED.match(line))]
    numbers = [int(match[1]) for match in lines]
    if numbers != list(range(1, count + 1)):
        raise ValueError(f"text: expected lines numbered 1 to {count}, got {numbers or 'none'} in {text[:80]!r}")
    phrases = tuple(_phrase(match[2].strip(" \"'")) for match in lines)
    if repeated := _repeated(phrases):
        raise ValueError(f"text: expected {count} different attributes, got {repeated!r} twice")
    return phrases


def read_table(path: Path | str) -> tuple[DistortionAttributes, ...]:
    """A table of one's own: for distortions beyond the 25, or for another set of them.

    Args:
        path: a TOML file with one ``[[distortion]]`` per distortion: ``key``, ``name``, ``explanation`` and
            ``attributes``, a list of phrases or sentences, equally many in each.

    Raises:
        ValueError: the file is no such table; file, entry and field are named.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"{path}: expected a TOML file ({error})") from error
    entries = found.get("distortion")
    if set(found) != {"distortion"} or not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected one [[distortion]] or more and nothing else, got {sorted(found) or 'none'}")
    table = tuple(_read_entry(f"{path}: distortion {number}", entry) for number, entry in enumerate(entries, 1))
    try:
        check_table(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return table


def _read_entry(where: str, entry: Any) -> DistortionAttributes:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a table [[distortion]], got {entry!r}")  # noqa: TRY004
    where += f" ({entry['key']})" if isinstance(entry.get("key"), str) else ""
    if set(entry) != set(_FIELDS):
        raise ValueError(f"{where}: expected the fields {', '.join(_FIELDS)}, got {', '.join(sorted(entry)) or 'none'}")
    for field in _FIELDS[:3]:
        if not isinstance(entry[field], str) or not entry[field].strip():
            raise ValueError(f"{where}, {field}: expected a text, got {entry[field]!r}")
    attributes = entry["attributes"]
    if not isinstance(attributes, list) or not attributes or not all(isinstance(text, str) for text in attributes):
        raise ValueError(f"{where}, attributes: expected a list of texts, got {attributes!r}")
    try:
        phrases = tuple(_phrase(text) for text in attributes)
    except ValueError as error:
        raise ValueError(f"{where}, {error}") from error
    return DistortionAttributes(entry["key"], entry["name"], entry["explanation"], phrases)


def check_table(table: Sequence[DistortionAttributes]) -> None:
    """Refuse a table that no model can be built from.

    Raises:
        ValueError: it is empty, a key or an attribute stands twice, or the numbers of attributes differ.
    """
    if not table or not table[0].attributes:
        raise ValueError("table: expected one distortion or more with attributes, got none")
    if repeated := _repeated([entry.key for entry in table]):
        raise ValueError(f"key: expected a different one for each distortion, got {repeated!r} twice")
    count = len(table[0].attributes)
    for entry in table:
        if len(entry.attributes) != count:
            raise ValueError(
                f"{entry.key}, attributes: expected {count}, as {table[0].key} has, got {len(entry.attributes)}"
            )
    if repeated := _repeated([_phrase(text).casefold() for entry in table for text in entry.attributes]):
        owners = [entry.key for entry in table for text in entry.attributes if _phrase(text).casefold() == repeated]
        raise ValueError(f"attributes: expected each once in the table, got {repeated!r} in {' and '.join(owners)}")


def _repeated(texts: Sequence[str]) -> str:
    """The first text that stands twice; empty if none does."""
    return next((text for place, text in enumerate(texts) if text in texts[:place]), "")


def table_hash(table: Sequence[DistortionAttributes]) -> str:
    """SHA-256 (64 hexadecimal digits) of a table: keys, full texts and their order.

    Attribute probabilities mean something with the table alone that they were learnt for; names and explanations for
    people do not count.
    """
    texts = [[entry.key, *map(list, zip(*sentences(entry.attributes), strict=True))] for entry in table]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


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
"""Data set, as `attriqa.data.datasets.READERS` calls it -> what its distortions look like, in its order."""

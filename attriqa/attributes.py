"""The five quality attributes and the antonym prompts that stand for them, as plain data."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

ATTRIBUTES = ("sharpness", "contrast", "brightness", "colorfulness", "noisiness")
"""The order of every ``(B, 5)`` tensor of attributes. Noisiness is high for a clean image."""

TEMPLATE = "{} image"

PROMPT_PAIRS: dict[str, tuple[str, str]] = {
    "sharpness": ("Splendid", "Blurry"),
    "contrast": ("Distinct", "Vague"),
    "brightness": ("Sunny", "Darkened"),
    "colorfulness": ("Vibrant", "Colorless"),
    "noisiness": ("Peerless", "Grainy"),
}
"""Attribute -> (positive, negative) adjective, to be set into `TEMPLATE`: the pairs that ATTIQA selected."""


class Candidates(NamedTuple):
    """The adjectives that `training/select_prompts.py` pairs: any positive one with any negative one."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.capitalize() for word in text.split())


# ATTIQA has 50 and 50 per attribute written by GPT-4 and prints none but those it selected: these are our own.
CANDIDATES: dict[str, Candidates] = {
    "sharpness": Candidates(
        _words("""
            splendid sharp crisp clear detailed focused well-focused in-focus tack-sharp razor-sharp pin-sharp clear-cut
            clean-cut well-defined defined fine-detailed high-definition high-resolution precise exact distinct acute
            incisive keen resolved well-resolved intricate textured lifelike legible readable discernible delineated
            chiseled etched unblurred undistorted steady stable shake-free accurate exquisite meticulous pristine lucid
            crystalline crystal-clear hard-edged sharpened ultra-sharp"""),
        _words("""
            blurry blurred unsharp soft fuzzy hazy unfocused out-of-focus defocused misfocused smeared smudged smudgy
            shaky shaken wobbly motion-blurred ghosted low-definition low-resolution pixelated indistinct unclear vague
            undefined ill-defined imprecise inexact undetailed detail-free textureless oversmoothed waxy mushy muddled
            bleary foggy misty cloudy murky illegible unreadable indiscernible unresolved nebulous obscure distorted
            soft-edged softened dull"""),
    ),
    "contrast": Candidates(
        _words("""
            distinct contrasty high-contrast contrasting punchy bold striking dramatic strong stark vivid intense deep
            rich dynamic powerful pronounced marked emphatic forceful crisp defined well-defined clear clear-cut sharp
            differentiated separated outstanding prominent conspicuous noticeable eye-catching impactful dimensional
            three-dimensional sculpted graphic full-range wide-ranging layered lively energetic snappy robust
            hard-hitting accentuated heightened amplified visible"""),
        _words("""
            vague low-contrast contrastless flat dull faded washed-out pale weak bland gray grayish drab muted subdued
            hazy foggy misty milky murky muddy lifeless insipid feeble faint soft indistinct undefined ill-defined
            unclear blurred undifferentiated uniform monotonous monotone even level featureless shallow thin anemic
            wan lackluster unremarkable inconspicuous unnoticeable two-dimensional narrow-ranged compressed
            diminished"""),
    ),
    "brightness": Candidates(
        _words("""
            sunny bright brilliant luminous radiant light lit well-lit sunlit daylit floodlit brightened light-filled
            sun-drenched sunshiny glowing shining shiny gleaming beaming blazing dazzling glaring sparkling glittering
            incandescent illuminated lightened high-key airy lucent lustrous resplendent effulgent refulgent aglow
            ablaze white whitish pale-toned snowy light-toned overexposed well-exposed daytime noonday midday flashing
            flaring lambent"""),
        _words("""
            darkened dark dim dimmed dusky gloomy shadowy shaded shady unlit ill-lit poorly-lit underlit underexposed
            low-key black blackened blackish pitch-dark pitch-black inky sooty murky somber tenebrous lightless sunless
            moonless starless nighttime nocturnal midnight overcast clouded obscured shrouded crepuscular twilit
            caliginous stygian dingy subterranean cavernous eclipsed blacked-out dark-toned ebony coal-black
            unilluminated
            rayless"""),
    ),
    "colorfulness": Candidates(
        _words("""
            vibrant colorful colored multicolored many-colored bright-colored saturated highly-saturated vivid rich
            rich-hued chromatic polychrome polychromatic kaleidoscopic rainbow rainbow-colored prismatic iridescent
            psychedelic technicolor tropical flamboyant gaudy garish flashy lurid loud lush florid flowery festive
            exuberant lively juicy neon fluorescent tinted dyed painted multihued variegated varicolored motley
            jewel-toned intense color-rich hued opulent brilliant"""),
        _words("""
            colorless monochrome monochromatic achromatic black-and-white grayscale gray grayish gray-toned ashen ashy
            desaturated unsaturated undersaturated faded washed-out bleached discolored decolorized pale pallid pasty
            wan drab dull dreary bland muted subdued neutral hueless toneless leaden steely slate-gray dusty chalky
            anemic bloodless lifeless tintless sober plain uncolored undyed unpainted single-toned one-toned
            mousy lackluster"""),
    ),
    "noisiness": Candidates(
        _words("""
            peerless clean noise-free noiseless grain-free grainless smooth silky silky-smooth velvety pure pristine
            spotless speckle-free speckless unspeckled stainless immaculate flawless faultless unblemished unspoiled
            untainted uncorrupted uncontaminated undisturbed unmarred perfect impeccable polished refined fine tidy
            neat creamy satiny glassy seamless even uniform denoised artifact-free interference-free static-free
            low-noise studio-quality professional high-quality crystal-clean clear"""),
        _words("""
            grainy noisy speckled speckly specked gritty sandy granular grained coarse coarse-grained rough mottled
            blotchy spotty spotted patchy dotted peppered flecked freckled snowy static-filled staticky scratchy
            scratched dirty dusty stained tainted corrupted contaminated degraded disturbed messy uneven bumpy
            pockmarked pitted rugged harsh crackly high-noise high-iso artifact-ridden noise-ridden grain-filled
            unclean flawed low-quality"""),
    ),
}
"""Attribute -> its candidates. Each positive word says more of the attribute (noisiness: cleaner) than each negative
one; no word stands twice within an attribute. The pairs of `PROMPT_PAIRS` are among them."""


def prompt_texts(pairs: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """The full (positive, negative) texts in the order of ``pairs``: ``("Splendid image", "Blurry image")``, ..."""
    return [(TEMPLATE.format(positive), TEMPLATE.format(negative)) for positive, negative in pairs.values()]


def table_hash(pairs: Mapping[str, tuple[str, str]]) -> str:
    """SHA-256 (64 hexadecimal digits) of a prompt table: names, full texts and their order.

    A checkpoint keeps the hash of the table that its pseudo-labels or text features came from; another table means
    other attributes.
    """
    table = [[name, *texts] for name, texts in zip(pairs, prompt_texts(pairs), strict=True)]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def read_pairs(path: str | Path, choice: Literal["best", "median", "worst"] = "best") -> dict[str, tuple[str, str]]:
    """The prompt pairs that a run of ``training/select_prompts.py`` selected.

    Args:
        path: its ``prompts.json``: ``{"template": ..., "attributes": {name: {"best": {"positive": ..., "negative":
            ...}, "median": ..., "worst": ...}}}``.
        choice: the pair of the highest, the median or the lowest score; the last two are ATTIQA's ablation.

    Returns:
        Attribute -> (positive, negative) adjective, in the order of `ATTRIBUTES`.

    Raises:
        ValueError: the file is something else, or its adjectives were scored in another template than `TEMPLATE`.
        OSError: it cannot be read.
    """
    try:
        table: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        template = table["template"]
        found = {name: table["attributes"][name][choice] for name in ATTRIBUTES}
        pairs = {name: (pair["positive"], pair["negative"]) for name, pair in found.items()}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: expected the prompts.json of training/select_prompts.py, got {reason}") from error
    if template != TEMPLATE:
        raise ValueError(f"{path}: expected adjectives for the template {TEMPLATE!r}, got {template!r}")
    for name, pair in pairs.items():
        if not all(isinstance(word, str) and word for word in pair):
            raise ValueError(f"{path}: {name}: expected two adjectives, got {pair}")
    return pairs

"""The models on a CLIP, small and with random weights: how tests build them, give them an opinion and train them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attriqa.distortions.attributes import DISTORTION_ATTRIBUTES
from attriqa.models.clip.model import CLIPModel
from attriqa.models.clip.towers import CLIPTowers, build_clip
from attriqa.models.clip_iqa import ClipIQA, ClipIQAConfig, ClipIQAPlus, ClipIQAPlusConfig
from attriqa.models.exiqa import ExIQA, ExIQAConfig
from attriqa.models.liqe import LIQE, LIQEConfig
from attriqa.models.mp_iqe import MPIQE, MPIQEConfig
from attriqa.training.losses import quality_fidelity, strength_loss
from tests.support import small_clip
from tests.support.small_clip import pictures

ModelT = TypeVar("ModelT", bound=CLIPModel)
CONFIG = small_clip.vit(32)
RESNET = small_clip.RESNET | {"text_cfg": CONFIG["text_cfg"]}
TABLE = DISTORTION_ATTRIBUTES[:4]
FEW: dict[str, Any] = {"scenes": ("animal", "plant"), "distortions": ("blur", "noise", "other")}


def towers_of(seed: int = 0, config: dict[str, Any] = CONFIG, **vision: Any) -> CLIPTowers:
    """With residual branches that tell images apart, where a ResNet has them."""
    changed = config | {"vision_cfg": config["vision_cfg"] | vision}
    towers = build_clip({"model_cfg": changed, "preprocess_cfg": small_clip.PREPROCESS}, name="tiny", seed=seed)
    for name, parameter in towers.model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)
    return towers


def exiqa(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> ExIQA:
    settings: dict[str, Any] = {"table": TABLE, "prompts": 4, "regressor_widths": (16, 8)} | changes
    return ExIQA(ExIQAConfig(**settings), towers or towers_of(), seed=seed)


def tuned_exiqa(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> ExIQA:
    """Without prompts: both towers learn."""
    return exiqa(towers, seed, tune="all", prompts=0, prompt_kind="none", **changes)


def liqe(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> LIQE:
    settings: dict[str, Any] = {**FEW, "stride": 8, "crops": 4} | changes
    return LIQE(LIQEConfig(**settings), towers or towers_of(), seed=seed).eval()


def mp_iqe(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> MPIQE:
    settings: dict[str, Any] = {"windows": 3, "crops": 3, "layers": 2} | changes
    return MPIQE(MPIQEConfig(**settings), towers or towers_of(), seed=seed)


def clip_iqa(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> ClipIQA:
    return ClipIQA(ClipIQAConfig(**changes), towers or towers_of(), seed=seed).eval()


def clip_iqa_plus(towers: CLIPTowers | None = None, seed: int = 0, **changes: Any) -> ClipIQAPlus:
    return ClipIQAPlus(ClipIQAPlusConfig(**changes), towers or towers_of(), seed=seed).eval()


def last_layer(model: CLIPModel) -> nn.Linear:
    """Of a regressor or a head, which starts with one score for all images."""
    return cast(nn.Linear, (model.regressor if isinstance(model, ExIQA) else cast(MPIQE, model).head)[-1])


def teach_score(model: ModelT) -> ModelT:
    """A model that has an opinion, within (0, 1)."""
    with torch.no_grad():
        weight = last_layer(model).weight
        most = 1 if isinstance(model, ExIQA) else 0.1
        weight.copy_(torch.linspace(-most, most, weight.numel())[None])
    return model


class Case(NamedTuple):
    """A kind of model on a CLIP.

    ``learns`` says of the name of a tensor whether training changes it, ``texts`` how often texts are encoded when they
    are read, ``changes`` is a configuration of other fields than the defaults.
    """

    build: Callable[..., Any]
    loss: Callable[[Any], Tensor]
    learns: Callable[[str], bool]
    texts: int = 1
    changes: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)
    lr: float = 0.02


def _strengths(model: ExIQA) -> Tensor:
    true = torch.randint(0, 6, (3, len(model.config.table)), generator=torch.Generator().manual_seed(1)) / 5
    return strength_loss(model.identify(pictures()).strengths, true)


def _order(model: LIQE) -> Tensor:
    return quality_fidelity(model.predict(pictures(5)).quality, torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0]))


def _everything(model: MPIQE) -> Tensor:
    reading = model.read(pictures(6, 48, 48))
    loss = F.mse_loss(reading.score, torch.linspace(0, 1, 6))
    for logits in (reading.scenes, reading.distortions):
        loss = loss + (F.cross_entropy(logits, torch.arange(6)) if logits.shape[1] else 0)
    return loss


def _squares(model: ClipIQAPlus) -> Tensor:
    return F.mse_loss(model.predict(pictures())[:, 0], torch.tensor([0.1, 0.2, 0.15]))


CASES = {
    "exiqa": Case(
        lambda *args, **settings: teach_score(exiqa(*args, **settings)),
        _strengths,
        lambda name: name in ("prompts.prompts", "weights"),
        changes={"logit_scale": 9.5, "prompt_kind": "deep", "regressor_widths": (7,)},
    ),
    "tuned exiqa": Case(
        lambda *args, **settings: teach_score(tuned_exiqa(*args, **settings)),
        _strengths,
        lambda name: name == "weights" or (name.startswith("clip.") and name != "clip.logit_scale"),
        lr=2e-3,
    ),
    "liqe": Case(liqe, _order, lambda name: name != "clip.logit_scale", changes={"scenes": (), "crops": 3}, lr=1e-3),
    "mp-iqe": Case(
        lambda *args, **settings: teach_score(mp_iqe(*args, **settings)),
        _everything,
        lambda name: not name.startswith("clip."),
        texts=2,  # scenes, distortions
        changes={"prompt_kind": "first", "shorter_edge": 96},
        lr=0.01,
    ),
    "clip-iqa-plus": Case(
        clip_iqa_plus,
        _squares,
        lambda name: name == "context.context",
        changes={"context": 6, "shared": False},
        lr=0.05,
    ),
}


def train(model: CLIPModel, case: Case, steps: int = 4) -> list[float]:
    """The losses of some steps of Adam."""
    if isinstance(model, ExIQA):
        model.regressor.requires_grad_(False)  # it has its own phase
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=case.lr)
    model.train()
    losses = []
    for _ in range(steps):
        loss = case.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

"""What the recipes that tune ask for on their command lines, and what they make of it."""

import fnmatch
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from attriqa import QualityReward
from attriqa.config import check_least, opt, required
from attriqa_envs.agents.policy import Policy, load_policy
from attriqa_envs.agents.search import Method, Tuned, search
from attriqa_envs.evaluation.judges import REWARDS, make_reward
from attriqa_envs.fivek import FiveK
from attriqa_envs.isp import table_hash
from attriqa_envs.raw.cache import RenditionCache
from attriqa_envs.raw.find import ImageFile, find_images
from attriqa_envs.raw.image_sets import seeds_of
from attriqa_envs.tuning import TuningTask

TRAINED_SIDE = 192  # px at which policies are trained unless they say otherwise


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Where images come from.

    Raises:
        ValueError: not one of ``photos``, ``raw`` and ``fivek`` is given.
    """

    photos: Path | None = opt(None, "folder of photos, and the folders in it; each is turned into plausible raw files")
    photo_pattern: str = opt("*", "which files of --photos are used, by name")
    raw: Path | None = opt(None, "instead: folder of raw files, and the folders in it")
    fivek: Path | None = opt(None, "instead: root of MIT-Adobe FiveK")
    out: Path = required("where everything goes")
    cache: Path | None = opt(None, "folder that keeps decoded files; OUT/cache unless given")

    def __post_init__(self) -> None:
        if (self.photos, self.raw, self.fivek).count(None) != 2:
            raise ValueError("--photos, --raw, --fivek: expected one of them")

    @property
    def root(self) -> Path:
        """The folder of the images."""
        root = self.photos or self.raw or self.fivek
        assert root is not None
        return root

    def renditions(self, side: int) -> RenditionCache:
        """Linear light of the files at a size, kept between runs."""
        return RenditionCache(self.cache or self.out / "cache", side)

    def find(self) -> list[ImageFile]:
        """The files.

        Raises:
            ValueError: there are none.
        """
        if self.fivek is not None:
            return [photo.source for photo in FiveK(self.fivek).photos]
        if self.raw is not None:
            return find_images(self.raw, kind="raw")
        photos = find_images(self.root, kind="photo")
        chosen = [photo for photo in photos if fnmatch.fnmatch(photo.path.name, self.photo_pattern)]
        if not chosen:
            raise ValueError(
                f"--photo-pattern: expected one that photos in {self.root} have; got none of {len(photos)}"
            )
        return chosen


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What is optimised, and where.

    Raises:
        ValueError: there is no such device.
    """

    model: str = opt("robust", f"what is optimised: {REWARDS}")
    parameters: tuple[str, ...] | None = opt(None, "ISP parameters that may change; all unless given")
    distance_weight: float = opt(TuningTask.distance_weight, "reward per mean squared distance from the default")
    clipping_weight: float = opt(TuningTask.clipping_weight, "reward per share of clipped pixels")
    device: str = opt("cpu", "cpu or cuda")
    seed: int = opt(0, "of everything random")

    def __post_init__(self) -> None:
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device: expected cpu, as PyTorch finds no GPU; got {self.device}")


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(TuningOptions):
    """Where there is a policy, its task stands in for the parameters and the weights below.

    Raises:
        ValueError: as `TuningOptions`, or there are a policy and parameters.
    """

    policy: Path | None = opt(None, "folder of a trained policy; its task and its size of pictures are used")
    side: int | None = opt(None, "px of the central squares that are tuned; the policy's unless given")
    batch: int = opt(16, "pictures rendered and scored at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, batch=1)
        if self.policy is not None and self.parameters is not None:
            raise ValueError("--parameters: expected none with --policy, which has its own")


@dataclass(frozen=True)
class Identity:
    """What must not change between runs of one folder."""

    reward: str
    policy: str | None
    isp_parameters: str


class Setup(NamedTuple):
    """What all images share; ``side`` is that of the squares that are tuned."""

    task: TuningTask
    side: int
    reward: QualityReward
    policy: Policy | None
    identity: Identity

    def search(
        self, config: PolicyOptions, method: Method, linear: Tensor, files: Sequence[str], *, renders: int
    ) -> Tuned:
        """Tune the linear light ``(N, 3, H, W)`` of N files; what is random is the same for a file in any company."""
        act, seeds = None if self.policy is None else self.policy.act, seeds_of(config.seed, files)
        return search(method, linear, self.reward, self.task, renders=renders, seeds=seeds, act=act, batch=config.batch)


def set_up(config: PolicyOptions, *, side: int) -> Setup:
    """Everything that the command line names besides the images; ``side`` is for those who have no policy.

    Raises:
        ValueError: the policy chooses tools, or is none; or as `make_reward`.
    """
    policy = None if config.policy is None else load_policy(config.policy, device=config.device)
    if policy is None:
        weights = {name: getattr(config, name) for name in ("parameters", "distance_weight", "clipping_weight")}
        task, trained, digest = TuningTask(**weights), side, None
    else:
        task, digest = policy.task, policy.sha256[:16]
        trained = int(policy.about.get("config", {}).get("side", TRAINED_SIDE))
    if task.mode == "tools":
        raise ValueError(f"--policy: expected one that sets ISP parameters; {config.policy} chooses tools (dqn)")
    reward = make_reward(config.model, device=config.device)
    return Setup(task, config.side or trained, reward, policy, Identity(reward.identity, digest, table_hash()))


def report_left_out(reasons: Iterable[object]) -> None:
    """Tell, beside the progress bars, which files are left out and why."""
    for reason in reasons:
        tqdm.write(f"left out: {reason}", file=sys.stderr)

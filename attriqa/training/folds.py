"""What recipes on CLIP do with folds: train and test those that have no result yet, then print medians over all."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attriqa.data.batches import central
from attriqa.data.crops import Example
from attriqa.data.protocol import Plan
from attriqa.evaluation import metrics
from attriqa.evaluation.bootstrap import median_of_folds
from attriqa.files import as_dict, write_json
from attriqa.models import QualityModel
from attriqa.training.loop import Loop, Pace, loader, predict_all, seed_step
from attriqa.training.options import CLIPRun, accelerator_of, begin

# What only this machine knows: it is left out of a checkpoint's provenance.
_PLACES = {"data", "manifest", "photos", "labels", "test", "out", "clip", "clip_config", "init", "pairs", "table"}
Losses = Callable[[nn.Module, int, Example], Tensor]


class Forward(nn.Module):
    """Some method of a net as its forward, which data parallelism needs."""

    def __init__(self, net: nn.Module, method: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, images: Tensor) -> Any:
        """What the method says of images."""
        return self.method(images)


class Trained(NamedTuple):
    """What a fold leaves behind."""

    net: QualityModel
    result: dict[str, Any]  # for ``metrics.json``
    about: dict[str, Any]  # for the checkpoint's provenance: what was learnt from


@dataclass(frozen=True)
class FoldRun:
    """The training and the tests of one fold, on any number of processes.

    Attributes:
        config: of the run.
        accelerator: of `attriqa.training.options.accelerator_of`.
        folder: of the fold.
    """

    config: CLIPRun
    accelerator: Any
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return self.accelerator.device  # type: ignore[no-any-return]

    def loop(
        self,
        learnt: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        losses: Sequence[str],
        steps: int,
        per_epoch: int,
        batch: int,
        unit: str = "images",
        tests: int | None = None,
        **identity: Any,
    ) -> Loop:
        """Its steps, from where they were cut off; arguments as of `Loop` and `Pace`, the config apart."""
        pace = Pace(steps, per_epoch, self.config.log_every, self.config.save_every, batch, unit, tests)
        known = {**as_dict(self.config), "fold": self.folder.name, **identity}
        return Loop(
            self.accelerator, self.folder, {"learnt": learnt}, optimizer, losses=losses, pace=pace, identity=known
        )

    def train(
        self,
        loop: Loop,
        forward: nn.Module,
        images: Any,
        batches: Callable[..., Any],
        losses: Losses,
        rates: Callable[[int], Sequence[float]],
        test: Callable[[int], Mapping[str, Any]] | None = None,
        *,
        gathered: bool = False,
    ) -> None:
        """Take all steps of ``loop`` that are left; every draw is a function of a step's number.

        Args:
            loop: of `loop`.
            forward: what data parallelism wraps.
            images: a data set of `Example`, whose ``path(number)`` is the file of an item.
            batches: `GlobalBatches` or `JointBatches`, but for the share of this process and the seed.
            losses: the model, the step's number and its batch -> the losses, the first of which is minimised.
            rates: a step's number -> the learning rate of each group of parameters.
            test: as in `Loop.run`.
            gathered: the loss is one and the same on all processes (`attriqa.training.loop.gather_rows`).
        """
        config, accelerator = self.config, self.accelerator
        process, processes = accelerator.process_index, accelerator.num_processes
        sampler = batches(first=loop.first, process=process, processes=processes, seed=config.seed)
        model, optimizer = accelerator.prepare(forward, loop.optimizer)

        def step(number: int, batch: Example) -> Tensor:
            seed_step(config.seed, number, process)
            for group, rate in zip(optimizer.param_groups, rates(number), strict=True):
                group["lr"] = rate
            model.train()
            values = losses(model, number, batch)
            optimizer.zero_grad()
            accelerator.backward(values[0] * (processes if gathered else 1))
            optimizer.step()
            return values.detach()

        def names(number: int) -> dict[str, list[str]]:
            return {"files": [images.path(item).name for item in sampler.numbers(number)]}

        loop.run(step, loader(images, sampler, workers=config.workers, seed=config.seed), names, test)

    def predict(
        self,
        net: nn.Module,
        predict: Callable[[Example], Iterable[Tensor]],
        images: Any,
        title: str,
        numbers: Sequence[int] | None = None,
        *,
        batch: int = 1,
    ) -> list[Tensor]:
        """`predict_all` of a data set, or of some of its items, the net in eval mode, ``batch`` images at a time."""
        net.eval()
        numbers = range(len(images.paths)) if numbers is None else numbers
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = loader(images, central(mine, batch), workers=self.config.workers)
        return predict_all(predict, batches, self.accelerator, title)


def run_folds(
    config: CLIPRun, name: str, folds: Sequence[str], run_fold: Callable[[int, FoldRun], Trained]
) -> list[dict[str, Any]] | None:
    """Run every fold that has no result yet.

    ``OUT/FOLD`` gets ``model.safetensors`` and ``metrics.json``.

    Args:
        config: of the run.
        name: of the recipe, ``training/train_NAME.py``.
        folds: names of them all.
        run_fold: trains and tests the fold of a number.

    Returns:
        The results of all folds on the main process; None on the others.
    """
    accelerator = accelerator_of(config)
    begin(accelerator, config, f"attriqa-{name.replace('_', '-')}")
    torch.set_float32_matmul_precision("high")
    for number, folder in enumerate(config.out / fold for fold in folds):
        if (folder / "metrics.json").exists():
            continue
        net, result, about = run_fold(number, FoldRun(config, accelerator, folder))
        if accelerator.is_main_process:
            settings = {key: value for key, value in as_dict(config).items() if key not in _PLACES}
            recipe = {"recipe": f"training/train_{name}.py", "config": settings}
            net.save(folder / "model.safetensors", {**recipe, **about, "metrics": result})
            write_json(folder / "metrics.json", result)
            for left in ("state", "probabilities"):
                (folder / f"{left}.safetensors").unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    return [json.loads((config.out / fold / "metrics.json").read_text()) for fold in folds]


class RatedImages(NamedTuple):
    """What a fold is tested on."""

    paths: list[Path]
    mos: list[float]  # on the data set's own scale
    rows: list[int] | None  # of the data set; None: another one


def held_out(plans: Sequence[Plan], number: int, names: Sequence[str] = ("test",)) -> dict[str, RatedImages]:
    """The test sides of a fold, by name, and then the other data sets, whole, by theirs.

    Args:
        plans: of data sets that are split alike.
        number: of the fold.
        names: of the test side of each plan, where it has one.
    """
    tests = {}
    for name, plan in zip(names, plans, strict=True):
        if rows := plan.folds[number].test:
            mos = [plan.dataset.rows[row].mos for row in rows]
            tests[name] = RatedImages(plan.test_paths(plan.folds[number]), mos, rows)
    for other in plans[0].strangers:
        tests[other.name] = RatedImages([row.path for row in other.rows], [row.mos for row in other.rows], None)
    return tests


def report(prediction: Sequence[Tensor], mos: Sequence[float], where: str, **known: Tensor) -> dict[str, float]:
    """``metrics.report`` of scores and, where classes are known, how often the most probable one is right.

    Args:
        prediction: of N images: the score, (N,); then probabilities, (N, C), of the classes that ``known`` names.
        mos: theirs, on any scale.
        where: the fold and the test, for the message.
        known: (N, C) by kind (``scene``, ``distortion``): above 0 for all classes of an image; 0 where none is known.

    Returns:
        The report; of each kind ``KIND_accuracy`` (any of an image's classes is right) and ``KIND_n``, the number of
        images that it is over.

    Raises:
        ValueError: the scores are all the same.
    """
    try:
        found = metrics.report(prediction[0].tolist(), list(mos), seed=0, resamples=1000)
    except ValueError as error:  # nothing was learnt
        raise ValueError(f"{where}: {error}") from error
    for (kind, true), probs in zip(known.items(), prediction[1:], strict=False):
        labelled = true.any(1)
        if probs.shape[1] and labelled.any():
            right = true[labelled].gather(1, probs[labelled].argmax(1, keepdim=True)) > 0
            found |= {f"{kind}_accuracy": right.float().mean().item(), f"{kind}_n": int(labelled.sum())}
    return found


def medians_of_tests(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over folds, by test and statistic.

    Args:
        results: of each fold; ``tests`` holds a `report` by the test's name.

    Returns:
        By test: the medians, ``srocc_low`` and ``srocc_high`` (what the choice of splits moves the median by) and the
        number of ``folds``.
    """
    medians = {}
    for name in dict.fromkeys(name for result in results for name in result["tests"]):
        rows = [result["tests"][name] for result in results if name in result["tests"]]
        kept = [key for key in rows[0] if not key.endswith(("_low", "_high")) and all(key in row for row in rows)]
        spread = median_of_folds([row["srocc"] for row in rows])
        medians[name] = {key: median_of_folds([row[key] for row in rows]).median for key in kept}
        medians[name] |= {"folds": len(rows), "srocc_low": spread.low, "srocc_high": spread.high}
    return medians


def write_medians(
    out: Path,
    results: Sequence[dict[str, Any]],
    medians: Mapping[str, Mapping[str, float]],
    title: str,
    about: Mapping[str, Any],
) -> None:
    """Print medians below a title; write them to ``OUT/metrics.json``, with ``about`` and the results of all folds."""
    lines = [
        f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()) for name, row in medians.items()
    ]
    print("\n".join([title, *lines]))
    write_json(out / "metrics.json", {**about, **medians, "folds": results})

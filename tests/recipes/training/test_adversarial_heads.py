"""training/adversarial_heads.py: examples keep their budget, training makes them worth less, a killed run goes on."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from attriqa import ATTRIBUTES, QualityReward, load
from attriqa.evaluation.attacks import pgd, to_8_bits
from attriqa.models import load_with_provenance
from attriqa.models.attribute_net import rebuilt
from attriqa.training import adversarial as adversarial_examples
from attriqa.training.probe_run import KeptStatistics, claim_start, read_nets, read_run
from tests.support.trees import probe as probe_tree
from tests.support.trees import unlabelled as unlabelled_tree
from tests.support.trees.probe import Tree

ROOT = Path(__file__).resolve().parents[3]
FLAGS = {"rounds": 1, "photos_per_round": 16, "steps": 3, "epochs": 16, "batch": 16, "lr": 1e-3, "chunk": 12}
FLAGS |= {"tuned_renders": 2, "tuned_side": 64}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return unlabelled_tree.load_recipe("adversarial_heads")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return probe_tree.build(tmp_path_factory.mktemp("heads"))


class Jobs:
    """Work on split0, from the same start each time."""

    def __init__(self, recipe: ModuleType, tree: Tree) -> None:
        self.recipe, self.tree = recipe, tree
        self.run = read_run(tree.run, tree.data, protocol="splits", splits=1)
        self.start = read_nets(self.run)[0].net

    def new(self, out: Path, **options: Any) -> Any:
        given = {**FLAGS, **options}
        config = self.recipe.Config(run=self.tree.run, data=self.tree.data, photos=self.tree.photos, out=out, **given)
        statistics = KeptStatistics(self.start, out / "statistics", config.chunk)
        net = copy.deepcopy(self.start)
        return self.recipe.Job(
            config, self.run, self.run.plan.folds[0], self.start, net, statistics, torch.empty(0), [], {}
        )

    def fitted(self, out: Path, pool: dict[str, Tensor], **options: Any) -> Any:
        """After one round of training."""
        work = self.new(out, **options)
        with torch.random.fork_rng(devices=[]):
            self.recipe.fit(work, pool, 1)
        return work


@pytest.fixture(scope="module")
def jobs(recipe: ModuleType, tree: Tree) -> Jobs:
    return Jobs(recipe, tree)


@pytest.fixture(scope="module")
def pool(recipe: ModuleType, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Examples against the net as the run left it."""
    found: dict[str, Tensor] = recipe.search(jobs.new(tmp_path_factory.mktemp("pool")), 1)
    return found


def test_examples_keep_their_budget_and_push_their_way(
    recipe: ModuleType, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = jobs.new(tmp_path, epsilons=(2, 6), photos_per_round=8), []

    def watched(scorer: Any, images: Tensor, epsilon: Tensor, steps: int, *, start: Tensor) -> Tensor:
        attacked = pgd(scorer, images, epsilon, steps, start=start)
        seen.append((images, attacked, start, epsilon))
        return attacked

    monkeypatch.setattr(adversarial_examples, "pgd", watched)
    found = recipe.search(work, 1)
    images, attacked, start, epsilon = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(epsilon, found["epsilon"])
    assert set((epsilon * 255).round().tolist()) == {2, 6}
    reach = epsilon[:, None, None, None] + 1e-6
    assert ((attacked - images).abs() <= reach).all()
    assert ((start - images).abs() <= reach).all()
    assert not torch.equal(start, images)
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert found["way"].tolist() == [1.0] * 8 + [-1.0] * 4
    assert found["row"][8:].tolist() == found["row"][1:8:2].tolist()
    assert set(found["row"].tolist()) <= set(work.fold.train), "nothing of the test side"
    assert (found["gain"] > 0).all()
    with torch.no_grad():
        logits = [work.net.read(work.net.pool(pixels))[0] for pixels in (attacked, images)]
    torch.testing.assert_close(found["way"] * (logits[0] - logits[1]), found["gain"], rtol=0, atol=0.02)


def test_examples_follow_the_seed_and_differ_by_round(recipe: ModuleType, jobs: Jobs, tmp_path: Path) -> None:
    few = {"photos_per_round": 3, "steps": 1}
    first = recipe.search(jobs.new(tmp_path / "first", **few), 1)
    again = recipe.search(jobs.new(tmp_path / "again", **few), 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(recipe.search(jobs.new(tmp_path / "other", seed=1, **few), 1)["clean"], first["clean"])
    assert not torch.equal(recipe.search(jobs.new(tmp_path / "again", **few), 2)["clean"], first["clean"])


def test_training_makes_a_new_attack_worth_less(
    recipe: ModuleType, jobs: Jobs, tmp_path: Path, pool: dict[str, Tensor]
) -> None:
    """White-box, on photos of the test side; beside the same training without examples."""
    pool = {name: value for name, value in pool.items() if "_" not in name}
    gains = []
    for weight in (10.0, 0.0):
        work = jobs.fitted(tmp_path / f"{weight}", pool, consistency_weight=weight)
        gains.append(recipe.push(work, work.fold.test, np.random.default_rng(0))["gain"].mean().item())
    assert gains[0] < 0.8 * gains[1]


def test_training_makes_tempting_departures_worth_less(
    recipe: ModuleType, jobs: Jobs, tmp_path: Path, pool: dict[str, Tensor]
) -> None:
    assert (pool["tempted_gain"] > -0.1).all(), "the best of what Adam found"
    levels = pool["tempted_levels"]
    torch.testing.assert_close(levels[:, 0], torch.ones(len(levels)))
    assert (levels.diff(dim=1) < 0).all()
    pool = {name: value for name, value in pool.items() if not name.startswith("tuned")}
    gains = []
    for weight in (10.0, 0.0):
        work = jobs.new(tmp_path / f"{weight}", consistency_weight=0.0)
        work.run.settings["quality_weight"] = weight
        with torch.random.fork_rng(devices=[]):
            recipe.fit(work, pool, 1)
        gains.append(recipe.tempt(work, work.run.ramp_photos, np.random.default_rng(0))["gain"].mean().item())
    work.run.settings["quality_weight"] = probe_tree.SETTINGS["quality_weight"]
    assert gains[0] < gains[1] - 0.1


def test_the_departure_head_learns_from_drawn_departures_at_its_own_rate(
    recipe: ModuleType, jobs: Jobs, tmp_path: Path, pool: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = jobs.new(tmp_path, lr=1e-9, departure_lr=3e-3, epochs=60)
    start = rebuilt(given.start, departure_width=8).eval().requires_grad_(False)
    drawn = recipe.draw_departures(given.config, given.run, start, given.statistics)
    assert recipe.draw_departures(given.config, given.run, given.start, given.statistics) == {}, "no head, none"
    falls = []
    monkeypatch.setitem(given.run.settings, "quality_weight", 10.0)
    for departures in (drawn, dict[str, Tensor]()):
        work = given._replace(start=start, net=copy.deepcopy(start), drawn=departures)
        with torch.random.fork_rng(devices=[]):
            recipe.fit(work, {name: pool[name] for name in pool if "_" not in name}, 1)
        with torch.no_grad():
            logit = work.logit(drawn["drawn_ramps"].flatten(0, 1)).view_as(drawn["drawn_levels"])
        falls.append((logit[:, :1] - logit[:, 1:]).mean().item())
        before, after = start.state_dict(), work.net.state_dict()
        moved = {name for name in before if (before[name] - after[name]).abs().max() > 1e-5}
        assert {name.partition(".")[0] for name in moved} == {"departure_head"}
    assert falls[0] > falls[1] + 0.1


def test_only_heads_and_regressor_learn(jobs: Jobs, tmp_path: Path, pool: dict[str, Tensor]) -> None:
    work = jobs.fitted(tmp_path, pool, epochs=2)
    before, after = work.start.state_dict(), work.net.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"heads_in", "heads_out", "regressor"}
    assert not work.net.training
    assert not any(value.requires_grad for value in work.net.parameters())


def test_attributes_are_held_by_the_weight_of_their_drift(jobs: Jobs, tmp_path: Path, pool: dict[str, Tensor]) -> None:
    drifts = []
    for weight in (0.0, 2.0):
        work = jobs.fitted(tmp_path, pool, drift_weight=weight)
        raw = work.run.views[torch.tensor(work.fold.test), 0]
        with torch.no_grad():
            moved = work.read(raw)[1] - work.start.read(work.standardised(raw))[1]
        drifts.append((moved / work.net.attribute_scale).abs().mean().item())
    assert drifts[1] < 0.7 * drifts[0]


def test_every_round_starts_from_the_run(
    recipe: ModuleType, jobs: Jobs, tmp_path: Path, pool: dict[str, Tensor]
) -> None:
    """Two trainings on the same examples give the same heads, whatever was in the net."""
    work = jobs.new(tmp_path, epochs=3)
    with torch.random.fork_rng(devices=[]):
        recipe.train(work, pool, 1)
        first = copy.deepcopy(work.net.state_dict())
        recipe.train(work, pool, 2)
    assert all(torch.equal(value, first[name]) for name, value in work.net.state_dict().items())
    assert any(not torch.equal(value, first[name]) for name, value in work.start.state_dict().items())


def test_the_attack_is_on_what_the_reward_says(recipe: ModuleType, jobs: Jobs, tmp_path: Path) -> None:
    squares = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    squares = torch.nn.functional.avg_pool2d(squares, 5, stride=1, padding=2)
    work = jobs.new(tmp_path, budgets=(2, 8), attack_steps=3, chunk=2)._replace(squares=to_8_bits(squares))
    reward = QualityReward(work.net, view="full")
    found = recipe.attack(work, "before")
    np.testing.assert_allclose(found["clean"], reward(work.squares), atol=1e-5)
    assert found["sd"]["score"] == pytest.approx(np.std(found["clean"], ddof=1))
    for told in found["attacks"]:
        attacked = load_file(work.kept / f"before-{told['budget']}.safetensors")["attacked"].float() / 255
        assert ((attacked - work.squares).abs() * 255).max() <= told["budget"] + 1e-3
        np.testing.assert_allclose(told["gains"]["score"], reward(attacked) - reward(work.squares), atol=2e-5)
        assert min(told["gains"]["logit"]) > 0
        assert "transferred" not in told
    with torch.no_grad():
        work.net.regressor[-1].weight.neg_()
    reward = QualityReward(work.net, view="full")
    for told in recipe.attack(work, "after")["attacks"]:
        attacked = load_file(work.kept / f"before-{told['budget']}.safetensors")["attacked"].float() / 255
        np.testing.assert_allclose(told["transferred"]["score"], reward(attacked) - reward(work.squares), atol=2e-5)
        assert max(told["transferred"]["logit"]) < 0 < min(told["gains"]["logit"]), "the net now likes the contrary"


def words(tree: Tree, out: Path, *more: str) -> list[str]:
    given = {"--run": tree.run, "--data": tree.data, "--photos": tree.photos, "--out": out}
    return [*(str(word) for pair in given.items() for word in pair), "--smoke", *more]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::attriqa.evaluation.metrics.FitWarning")
def test_a_killed_run_goes_on_to_the_very_same_numbers(
    recipe: ModuleType, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.main(words(tree, tmp_path / "whole", "--protocol", "splits"))
    printed = capsys.readouterr().out
    true_train, pushed = recipe.train, []

    def killed(work: Any, pool: dict[str, Tensor], number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        true_train(work, pool, number)

    monkeypatch.setattr(recipe, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(words(tree, tmp_path / "cut", "--protocol", "splits"))
    assert not list(tmp_path.glob("cut/**/metrics.json"))
    monkeypatch.setattr(recipe, "train", true_train)
    monkeypatch.setattr(recipe, "push", lambda *given: pushed.append(given))
    capsys.readouterr()
    recipe.main(words(tree, tmp_path / "cut", "--protocol", "splits"))
    assert not pushed, "both searches were done"
    assert capsys.readouterr().out == printed
    whole, cut = (load(tmp_path / name / "split0" / "model.safetensors").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for name in ("metrics.json", "split0/metrics.json"):
        assert json.loads((tmp_path / "cut" / name).read_text()) == json.loads((tmp_path / "whole" / name).read_text())
    assert not list(tmp_path.glob("cut/split0/kept")), "what only a killed run needs is gone"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--run", "nowhere"], "run: expected a finished one of training/finetune.py --mode probe, no nowhere"),
        (["--attacked-pattern", "cid22_*"], "expected photos that nothing has learnt from, cid22_0.png is not one"),
        (["--attacked-pattern", "*.bmp"], r"photos: expected 2 or more \*\.bmp"),
        (["--data", "clive=nowhere"], "the layout of CLIVE is"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--epsilons", "0"], "--epsilons, --budgets: expected positive numbers"),
        (["--attacked", "1"], "--attacked: expected at least 2, got 1"),
    ],
)
def test_user_errors_are_told(
    recipe: ModuleType, tree: Tree, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        recipe.main(words(tree, tmp_path / "out", *more))
    told = f"{error.value} {capsys.readouterr().err}"
    assert re.search(message, told), told
    assert not (tmp_path / "out").exists()


def test_held_out_photos_must_be_there(recipe: ModuleType, tree: Tree, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(tree.photos, photos, ignore=shutil.ignore_patterns("cid22_2*"))
    with pytest.raises(SystemExit, match=r"expected the photos of .*'s ramps, .*cid22_2.png is not there"):
        recipe.main(words(tree._replace(photos=photos), tmp_path / "out"))


def test_a_folder_of_other_nets_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    nets = read_nets(jobs.run)
    claim_start(tmp_path, jobs.run, nets)
    claim_start(tmp_path, jobs.run, nets)
    with pytest.raises(ValueError, match=r"began with other nets than .* holds now"):
        claim_start(tmp_path, jobs.run, [net._replace(sha256="2") for net in nets])


@pytest.mark.slow
def test_the_recipe_runs_as_users_run_it(tree: Tree, tmp_path: Path, run_recipe: Run) -> None:
    out = tmp_path / "out"
    done = run_recipe("training/adversarial_heads.py", *words(tree, out))
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [fold["fold"] for fold in metrics["folds"]] == ["all", "split0"]
    assert metrics["verdict"]["words"] == done.stdout.splitlines()[-1]
    assert set(metrics["attacks"]) == {"all", "splits"}
    for name, scales in metrics["attacks"].items():
        for row in scales["score"] + scales["logit"]:
            cells = " | ".join(
                f"{row[key]['mean']:+.2f} [{row[key]['low']:+.2f}, {row[key]['high']:+.2f}]"
                for key in ("before", "after", "bought", "transferred")
            )
            assert f"| {name} | PGD {row['budget']}/255, {row['scale']} | {cells} |" in done.stdout
    for when in ("before", "after"):
        assert f"{metrics['srocc'][when]:.4f}" in done.stdout
        assert all(f"{spread[when]:.3f}" in done.stdout for spread in metrics["sd"].values())
    assert list(metrics["ramp_srocc"]) == list(ATTRIBUTES)
    start, found = (load_with_provenance(folder / "all" / "model.safetensors") for folder in (tree.run, out))
    assert found.provenance["data"] == start.provenance["data"]
    assert found.provenance["adversarial_heads"]["metrics"] == metrics["folds"][0]
    assert str(tmp_path) not in json.dumps(found.provenance["adversarial_heads"])
    assert not (out / "statistics").exists()
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")}
    again = run_recipe("training/adversarial_heads.py", *words(tree, out))
    assert again.stdout == done.stdout, "a finished run only prints"
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")} == written

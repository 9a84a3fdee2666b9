"""attriqa.training.probe_run: a run is read, or refused with a reason; statistics are kept by the pixels."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attriqa.data.protocol import make_plan
from attriqa.data.ramps import RAMPS, DepartureGroups
from attriqa.models.attribute_net import AttributeNet
from attriqa.models.views import View
from attriqa.training.probe_run import KeptStatistics, read_nets, read_run
from tests.support import small_net
from tests.support.trees import probe as probe_tree
from tests.support.trees.probe import Tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return probe_tree.build(tmp_path_factory.mktemp("probe"))


@pytest.fixture
def copied(tree: Tree, tmp_path: Path) -> Tree:
    """A copy of the run, to be broken."""
    shutil.copytree(tree.run, tmp_path / "run")
    return tree._replace(run=tmp_path / "run")


def test_a_run_is_read_whole(tree: Tree) -> None:
    run = read_run(tree.run, tree.data, protocol="both", splits=2)
    assert [fold.name for fold in run.plan.folds] == ["all", "split0", "split1"]
    assert run.kinds == len(RAMPS)
    assert run.views.shape[:2] == (24, 2)
    assert run.held_out == ("cid22_2.png",)
    assert run.seen == {"cid22_0.png", "cid22_1.png", *(f"{i}.jpg" for i in range(24))}
    nets = read_nets(run)
    assert not any(value.requires_grad for found in nets for value in found.net.parameters())
    assert [len(found.provenance["data"]["CLIVE"]) for found in nets] == [24, 19, 19]
    part = read_run(tree.run, tree.data, protocol="splits", splits=1)
    assert [fold.train for fold in part.plan.folds] == [run.plan.folds[1].train]


def test_ramps_of_a_run_with_fewer_kinds_are_told_by_their_number(copied: Tree) -> None:
    path = copied.run / "statistics.safetensors"
    kept = load_file(path)
    for count, kinds in ((10, 5), (0, 0)):
        save_file(kept | {"ramps": kept["ramps"][:count], "levels": kept["levels"][:count]}, path)
        assert read_run(copied.run, copied.data, protocol="all", splits=1).kinds == kinds
    save_file(kept | {"ramps": kept["ramps"][:7]}, path)
    with pytest.raises(ValueError, match=rf"run: expected {len(RAMPS)} ramps of 2 photos, got 7"):
        read_run(copied.run, copied.data, protocol="all", splits=1)


def test_what_is_no_finished_probe_run_is_refused(copied: Tree) -> None:
    for change, message in (
        ({"mode": "full"}, "run: expected --mode probe, .* has full"),
        ({"splits": 1}, "splits: expected at most the 1 of .*, got 2"),
        ({"smoke": True, "fraction": 0.5}, "data: expected the 19 photos that split0 of .* learnt from, got 1"),
    ):
        (copied.run / "config.json").write_text(json.dumps(probe_tree.SETTINGS | change))
        with pytest.raises(ValueError, match=message):
            read_nets(read_run(copied.run, copied.data, protocol="splits", splits=2))
    (copied.run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=re.escape(f"no {copied.run / 'metrics.json'}")):
        read_run(copied.run, copied.data, protocol="splits", splits=2)


def test_other_photos_are_refused(copied: Tree, tmp_path: Path) -> None:
    root = Path(copied.data.partition("=")[2])
    names = sorted(root.joinpath("Images").iterdir())
    (tmp_path / "fewer").mkdir()
    table = tmp_path / "fewer" / "table.csv"
    table.write_text("path,mos\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names[:20])))
    with pytest.raises(ValueError, match=r"data: expected the 24 photos of .*, got 20"):
        read_run(copied.run, f"csv={table}", protocol="splits", splits=1)
    plan = make_plan(copied.data, protocol="splits", splits=2)
    probe_tree.save_net(copied, small_net.build(), plan, "split0")
    shutil.copy(copied.run / "split0" / "model.safetensors", copied.run / "split1" / "model.safetensors")
    run = read_run(copied.run, copied.data, protocol="splits", splits=2)
    with pytest.raises(ValueError, match=r"data: expected the 19 photos that split1 of .* learnt from, got 19 others"):
        read_nets(run)


def test_statistics_of_another_encoder_are_refused(copied: Tree) -> None:
    plan = make_plan(copied.data, protocol="splits", splits=2)
    probe_tree.save_net(copied, small_net.build(seed=1), plan, "split1")
    with pytest.raises(ValueError, match=r"statistics that split1's encoder gives of .*jpg, those in .* are \d+% off"):
        read_nets(read_run(copied.run, copied.data, protocol="splits", splits=2))


def test_encoders_that_differ_a_little_are_refused(copied: Tree) -> None:
    net = small_net.build()
    with torch.no_grad():
        next(net.backbone.parameters()).mul_(1.01)
    probe_tree.save_net(copied, net, make_plan(copied.data, protocol="splits", splits=2), "split1")
    with pytest.raises(ValueError, match=r"expected one encoder in all folds of .*, that of split1 is another"):
        read_nets(read_run(copied.run, copied.data, protocol="splits", splits=2))


@pytest.fixture(scope="module")
def net() -> AttributeNet:
    return small_net.build().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("view", ["five_crop", "full"])
def test_kept_statistics_are_what_the_net_sees(net: AttributeNet, tmp_path: Path, view: View) -> None:
    images = torch.rand(2, 3, 120, 130, generator=torch.Generator().manual_seed(0))
    raw = KeptStatistics(net, tmp_path, 3)(images, view)
    assert raw.shape[:2] == (2, 5 if view == "five_crop" else 1)
    logit = net.read((raw.flatten(0, 1) - net.pooled_mean) / net.pooled_std)[0]
    expected = net.see(images, view).score
    torch.testing.assert_close(torch.sigmoid(logit).view(2, -1).mean(1), expected, rtol=0, atol=1e-5)


def test_statistics_of_ramps_are_computed_once(
    net: AttributeNet, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = DepartureGroups([tree.photos / "cid22_0.png"], 96, 3, 0)
    kept = KeptStatistics(net, tmp_path, 3)
    found = kept.of_ramps(groups, tmp_path / "ramps.safetensors")
    images, level = groups[4]
    torch.testing.assert_close(found["ramps"][4].float(), kept.pool(images), rtol=2e-3, atol=1e-3)
    assert torch.equal(found["levels"][4], level)
    assert len(found["ramps"]) == len(groups)
    monkeypatch.setattr(KeptStatistics, "pool", None)
    again = kept.of_ramps(groups, tmp_path / "ramps.safetensors")
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_statistics_are_computed_once_for_the_same_pixels_and_view(
    net: AttributeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(1, 3, 120, 130, generator=torch.Generator().manual_seed(0))
    kept = KeptStatistics(net, tmp_path, 5)
    first = kept(images, "full")
    pooled: list[Tensor] = []

    def watched(self: KeptStatistics, seen: Tensor) -> Tensor:
        pooled.append(seen)
        return self.encoder.pool(seen)

    monkeypatch.setattr(KeptStatistics, "pool", watched)
    again = KeptStatistics(net, tmp_path, 5)
    assert torch.equal(again(images, "full"), first)
    assert not pooled
    others = [images.flip(3), images.transpose(2, 3), images.reshape(1, 3, 130, 120)]
    assert not any(torch.equal(again(other, "full"), first) for other in others)
    again(images, "five_crop")
    assert len(pooled) == 4
    assert not list(tmp_path.glob(".*"))


def test_the_net_itself_is_left_alone(net: AttributeNet, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert before["pooled_mean"].any()
    KeptStatistics(net, tmp_path, 5)(torch.rand(1, 3, 96, 96), "full")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

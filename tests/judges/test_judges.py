"""Judges by name."""

import shutil
from pathlib import Path

import pytest
import torch

import attriqa
from attriqa import QualityReward
from attriqa.judges import load_judge
from attriqa.judges.niqe import NIQE
from attriqa_envs.evaluation import make_judge, make_reward
from tests.judges.natural_scenes import write_niqe

PACKAGED = Path(attriqa.__file__).parent / "weights" / "judge.safetensors"


def test_names_give_judges_that_prefer_more(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 192, 96, generator=torch.Generator().manual_seed(0))
    niqe = load_judge(f"niqe:{write_niqe(tmp_path / 'niqe.npz')}")
    assert isinstance(niqe, NIQE)
    assert (niqe(images) < 0).all()
    for name in ("judge", str(shutil.copy(PACKAGED, tmp_path / "net.safetensors"))):
        model = load_judge(name)
        assert isinstance(model, QualityReward)
        assert model.identity.startswith(f"{Path(name).stem}-")
        assert model.view == "native"


@pytest.mark.parametrize("name", ["nobody", "niqe:nowhere.npz", "brisque:nowhere", "gone.safetensors"])
def test_what_is_not_there_is_told(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"judge: expected default, robust, judge, a checkpoint, .*; got {name}, and there is no"
    ):
        load_judge(name)


def test_what_is_no_judge_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("none")
    with pytest.raises(ValueError, match=r"text\.npz: expected an \.npz"):
        load_judge(f"niqe:{tmp_path / 'text.npz'}")
    with pytest.raises(ValueError, match=r"text\.npz: "):
        load_judge(str(tmp_path / "text.npz"))


def test_what_is_optimised_is_no_judge_in_any_view() -> None:
    optimised = QualityReward("judge", view="five_crop")
    with pytest.raises(ValueError, match="judge: expected one that is not optimised; judge is in judge-"):
        make_judge("judge", optimised=optimised)
    assert make_judge("judge", optimised=QualityReward()) is not None
    guarded = make_reward("guarded")
    for name in ("default", "judge"):
        with pytest.raises(ValueError, match=f"{name} is in default-.*/native/guard-"):
            make_judge(name, optimised=guarded)
    assert make_judge("noisiness", optimised=guarded) is not None


def test_rewards_by_name() -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, guarded = make_reward("default"), make_reward("guarded")
    assert plain.view == guarded.view == "native"
    assert guarded(images).item() < plain(images).item()
    with pytest.raises(FileNotFoundError):
        make_reward("no-such-file.safetensors")

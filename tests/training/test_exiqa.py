"""The parts of ExIQA's training that stand alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attriqa.evaluation.identification import confusion, top1_by_level, write_confusion
from attriqa.training.exiqa import fit_regressor


def test_confusion_counts_what_is_taken_for_what() -> None:
    true = torch.tensor([[0.2, 0, 0], [1.0, 0, 0], [0, 0.6, 0], [0, 0, 1.0]])
    predicted = torch.tensor([[0.1, 0.4, 0.2], [0.9, 0.1, 0.2], [0.1, 0.2, 0.1], [0.3, 0.2, 0.1]])
    assert confusion(predicted, true).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    shares = top1_by_level(predicted, true)
    assert shares == {"top1": 0.5, "top1_level_1": 0.0, "top1_level_2": 1.0, "top1_level_3": 0.5}
    others = torch.tensor([[0.0, 0, 0], [0.2, 0, 0.4]])
    assert (confusion(torch.cat([predicted, others]), torch.cat([true, others])) == confusion(predicted, true)).all()
    with pytest.raises(ValueError, match=r"predicted: expected the shape \(N, D\) of true, \(4, 3\), got \(4, 2\)"):
        confusion(predicted[:, :2], true)


def test_the_confusion_matrix_is_written_and_drawn(tmp_path: Path) -> None:
    counts = np.array([[9, 1, 0], [0, 0, 0], [0, 5, 5]])
    write_confusion(tmp_path, counts, ["a", "b_c", "d"], "on photos unseen")
    stored = json.loads((tmp_path / "confusion.json").read_text())
    assert stored["counts"] == counts.tolist()
    assert stored["keys"] == ["a", "b_c", "d"]
    with Image.open(tmp_path / "confusion.png") as file:
        picture = file.convert("RGB")
    assert min(picture.size) > 300
    colours = {colour for _, colour in picture.getcolors(1 << 24) or []}
    assert (68, 1, 84) in colours, "viridis at 0"
    other = tmp_path / "other"
    write_confusion(other, counts.T, ["a", "b_c", "d"], "on photos unseen")
    assert (other / "confusion.png").read_bytes() != (tmp_path / "confusion.png").read_bytes()
    assert not list(tmp_path.glob(".*.tmp"))


def regressor() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.SELU(), nn.Dropout(0.2), nn.Linear(16, 1))


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    probs = torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))
    return probs, (probs[:, 0] * (1 - probs[:, 3])).clamp(0, 1)


def test_the_regressor_learns_from_probabilities() -> None:
    probs, mos = rows(400, 0)
    net = regressor()
    history = fit_regressor(net, probs, mos, epochs=30, lr=1e-2, batch=64, seed=0)
    assert len(history) == 30
    assert history[-1] < 0.3 * history[0]
    assert not net.training
    unseen, wanted = rows(200, 1)
    with torch.no_grad():
        assert torch.corrcoef(torch.stack([net(unseen).flatten(), wanted]))[0, 1] > 0.85


def test_equal_seeds_give_equal_regressors_whatever_the_global_generator() -> None:
    probs, mos = rows(50, 0)
    found = []
    for seed in (0, 0, 1):
        before = torch.random.get_rng_state()
        net = regressor()
        fit_regressor(net, probs, mos, epochs=3, lr=1e-3, batch=16, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(7)
        found.append(net.state_dict()["0.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_regressor_refuses_what_does_not_fit() -> None:
    probs, mos = rows(50, 0)
    with pytest.raises(ValueError, match=r"mos: expected \(50,\), one for each row of probs, got \(49,\)"):
        fit_regressor(regressor(), probs, mos[:49], epochs=1, lr=1e-3, batch=16, seed=0)
    with pytest.raises(ValueError, match=r"lr: the regressor's loss is (nan|inf) after 1 epochs at 0.001"):
        fit_regressor(regressor(), probs, mos * float("nan"), epochs=1, lr=1e-3, batch=16, seed=0)

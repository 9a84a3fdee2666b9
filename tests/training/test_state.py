import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attriqa.training.state import StateError, load_state, save_state

CONFIG: dict[str, Any] = {"lr": 0.1, "seed": 3, "out": "runs/x", "taps": [1, 2]}


def setup(seed: int = 0) -> tuple[dict[str, nn.Module], torch.optim.AdamW]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 1))
    modules: dict[str, nn.Module] = {"net": net, "average": copy.deepcopy(net)}
    groups: list[dict[str, Any]] = [
        {"params": list(net[0].parameters())},
        {"params": list(net[1:].parameters()), "lr": 0.02},
    ]
    return modules, torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def train(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        loss = modules["net"](batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, optimizer = setup()
    train(whole, optimizer, range(3))
    save_state(tmp_path / "state", whole, optimizer, {"epoch": 3, "config": CONFIG})
    saved = {key: value.clone() for key, value in tensors(whole).items()}

    resumed, second = setup(seed=9)
    assert load_state(tmp_path / "state", resumed, second, config=CONFIG) == {"epoch": 3, "config": CONFIG}
    assert all(torch.equal(value, saved[key]) for key, value in tensors(resumed).items())
    first_groups, second_groups = (
        json.dumps([{key: value for key, value in group.items() if key != "params"} for group in each.param_groups])
        for each in (optimizer, second)
    )
    assert first_groups == second_groups

    train(whole, optimizer, range(3, 6))
    train(resumed, second, range(3, 6))
    expected = tensors(whole)
    assert all(torch.equal(value, expected[key]) for key, value in tensors(resumed).items())
    assert any(not torch.equal(value, saved[key]) for key, value in expected.items())


def test_a_fresh_optimizer_would_not_do(tmp_path: Path) -> None:
    """That the test above can fail: without the moments of AdamW the runs part."""
    whole, optimizer = setup()
    train(whole, optimizer, range(3))
    save_state(tmp_path / "state", whole, optimizer, {"config": CONFIG})
    resumed, second = setup(seed=9)
    load_state(tmp_path / "state", resumed, second, config=CONFIG)
    third = torch.optim.AdamW(second.param_groups)
    train(whole, optimizer, range(3, 4))
    train(resumed, third, range(3, 4))
    assert any(not torch.equal(value, tensors(whole)[key]) for key, value in tensors(resumed).items())


def test_another_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    modules, optimizer = setup()
    save_state(tmp_path / "state", modules, optimizer, {"config": CONFIG})
    with pytest.raises(StateError) as error:
        load_state(tmp_path / "state", modules, optimizer, config={**CONFIG, "lr": 0.2, "taps": [1]})
    text = str(error.value)
    assert "lr: 0.1 there, 0.2 now" in text
    assert "taps: [1, 2] there, [1] now" in text
    assert "seed" not in text
    assert "choose another --out" in text
    for other in ({**CONFIG, "new": 1}, {key: value for key, value in CONFIG.items() if key != "lr"}):
        with pytest.raises(StateError, match=r"new: None there, 1 now|lr: 0\.1 there, None now"):
            load_state(tmp_path / "state", modules, optimizer, config=other)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    modules, optimizer = setup()
    path = tmp_path / "state"
    save_state(path, modules, optimizer, {"epoch": 1, "config": CONFIG})
    data = path.read_bytes()
    before = {key: value.clone() for key, value in tensors(modules).items()}
    for part in (b"", data[:5], data[: len(data) // 2], data[:-1], b"PK\x03\x04" + data):
        path.write_bytes(part)
        with pytest.raises(StateError, match=r"not a training state that can be resumed.*delete it to start afresh"):
            load_state(path, modules, optimizer, config=CONFIG)
    assert all(torch.equal(value, before[key]) for key, value in tensors(modules).items())


def test_a_failed_write_keeps_the_old_state(tmp_path: Path) -> None:
    modules, optimizer = setup()
    path = tmp_path / "state"
    save_state(path, modules, optimizer, {"epoch": 1, "config": CONFIG})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_state(path, modules, optimizer, {"epoch": object(), "config": CONFIG})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


KILLED = """
import sys, torch
from torch import nn
from attriqa.training.state import save_state
net = nn.Linear(300, 300)
optimizer = torch.optim.AdamW(net.parameters())
epoch = 0
while True:
    nn.init.constant_(net.weight, epoch)
    save_state(sys.argv[1], {"net": net}, optimizer, {"epoch": epoch, "config": {}})
    epoch += 1
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for delay in (0.0, 0.013, 0.031):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as process:
            deadline = time.monotonic() + 120
            before = path.stat().st_mtime_ns if path.exists() else None
            while not path.exists() or path.stat().st_mtime_ns == before:
                assert process.poll() is None, "the writer ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(delay)
            process.kill()
        net = nn.Linear(300, 300)
        epoch = load_state(path, {"net": net}, torch.optim.AdamW(net.parameters()), config={})["epoch"]
        assert (net.weight == epoch).all()

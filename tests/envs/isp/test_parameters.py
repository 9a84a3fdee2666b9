from dataclasses import replace

import pytest
import torch

from attriqa_envs.isp import (
    KEYS,
    PARAMETERS,
    bounds,
    check_params,
    clip_params,
    parameter_table_markdown,
    parameters,
    table_hash,
    to_action,
    to_params,
)

P = len(PARAMETERS)


def test_the_table_holds_together() -> None:
    assert len(set(KEYS)) == P
    for parameter in PARAMETERS:
        assert parameter.low <= parameter.default <= parameter.high, parameter.key
        assert parameter.low < parameter.high, parameter.key
        assert parameter.default == 0, parameter.key
        assert parameter.unit, parameter.key
        assert parameter.meaning, parameter.key


def test_no_change_of_dtype_leaves_the_box() -> None:
    wide = torch.zeros(1, dtype=torch.float64)
    for end, exact in zip(bounds(wide.bfloat16()), bounds(wide), strict=True):
        assert torch.equal(end.double(), exact)
        for dtype in (torch.float16, torch.float32, torch.float64):
            check_params(end.to(dtype))


def test_the_pointwise_stages_come_before_the_others() -> None:
    order = ("linear", "tone", "colour", "detail")
    places = [order.index(parameter.stage) for parameter in PARAMETERS]
    assert places == sorted(places)


def test_an_action_spans_the_range() -> None:
    low, high = bounds(torch.zeros(1))
    torch.testing.assert_close(to_params(-torch.ones(P)), low)
    torch.testing.assert_close(to_params(torch.ones(P)), high)
    torch.testing.assert_close(to_params(torch.zeros(P)), (low + high) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_action_and_params_are_inverse_and_stay_in_their_boxes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    action = (2 * torch.rand(300, P, generator=generator) - 1).to(dtype)
    action[:100] = action[:100].sign()  # corners, where rounding could lead outside
    params = to_params(action)
    check_params(params)
    assert params.dtype == dtype
    torch.testing.assert_close(to_action(params), action, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_actions_pass_gradients_to_the_bounds() -> None:
    for end in (-1.0, 0.3, 1.0):
        action = torch.full((P,), end, requires_grad=True)
        to_params(action).sum().backward()
        assert action.grad is not None
        assert (action.grad > 0).all()


def test_clipping_leaves_what_is_inside_and_moves_the_rest_to_the_edge() -> None:
    low, high = bounds(torch.zeros(1))
    torch.testing.assert_close(clip_params(torch.zeros(2, P)), torch.zeros(2, P))
    torch.testing.assert_close(clip_params(torch.full((P,), 1e9)), high)
    torch.testing.assert_close(clip_params(torch.full((P,), -1e9)), low)
    assert clip_params(torch.full((P,), torch.nan)).isnan().all()


@pytest.mark.parametrize("wrong", [1.001, -1.001, torch.nan, torch.inf])
def test_a_wrong_action_is_named(wrong: float) -> None:
    action = torch.zeros(3, P)
    action[1, 2] = wrong
    with pytest.raises(ValueError, match=r"action: expected values in \[-1, 1\], got tint = \S+ of row 1"):
        to_params(action)


@pytest.mark.parametrize("wrong", [3.001, -3.001, torch.nan, -torch.inf])
def test_a_wrong_value_is_named_with_its_range(wrong: float) -> None:
    params = torch.zeros(2, P)
    params[1, 0] = wrong
    for refuse in (check_params, to_action):
        with pytest.raises(ValueError, match=r"params: .* got exposure = \S+ of row 1 \(range \[-3, 3\] EV\)"):
            refuse(params)


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(
        ValueError, match=rf"params: expected {P} values in the last dimension, got shape \(2, {P - 1}\)"
    ):
        check_params(torch.zeros(2, P - 1))
    with pytest.raises(ValueError, match=r"action: expected \d+ values in the last dimension, got shape \(\)"):
        to_params(torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"params: expected a floating-point tensor, got torch.int64"):
        clip_params(torch.zeros(P, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"params: expected a floating-point tensor, got list"):
        check_params([0.0] * P)  # type: ignore[arg-type]


def test_the_hash_follows_what_the_numbers_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = table_hash()
    first, *rest = PARAMETERS
    others = {
        "range": (replace(first, high=4), *rest),
        "unit": (replace(first, unit="stop"), *rest),
        "key": (replace(first, key="ev"), *rest),
        "order": (*rest, first),
        "count": tuple(rest),
    }
    found = {mine}
    for table in others.values():
        monkeypatch.setattr(parameters, "PARAMETERS", table)
        found.add(table_hash())
    assert len(found) == 1 + len(others)
    monkeypatch.setattr(parameters, "PARAMETERS", (replace(first, meaning="another wording"), *rest))
    assert table_hash() == mine
    monkeypatch.setattr(parameters, "ISP_VERSION", parameters.ISP_VERSION + 1)
    assert table_hash() != mine


def test_the_document_has_a_row_for_each_parameter() -> None:
    head, rule, *rows = parameter_table_markdown().splitlines()
    assert head.count("|") == rule.count("|") == 6
    assert len(rows) == P
    for parameter, row in zip(PARAMETERS, rows, strict=True):
        assert row.count("|") == 6
        assert row.startswith(f"| `{parameter.key}` | {parameter.unit} | {parameter.low:g} .. {parameter.high:g} |")

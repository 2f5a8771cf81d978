"""Costs are ratios of times that lie side by side; a distilled model is charged for both its trainings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ml import cost, train
from ml.cost import Cost
from ml.datasets import Dataset


def test_ways_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    progress: list[int] = []
    times = cost.interleaved(ways, 3, progress.append)
    assert "".join(calls) == "abababab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert sum(progress) == 8


def test_each_way_is_charged_the_time_of_its_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def lasting(*seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def way() -> None:
            nonlocal now
            now += left.pop(0)

        return way

    monkeypatch.setattr("time.perf_counter", lambda: now)
    ways = {"a": lasting(50.0, 1.0, 2.0), "b": lasting(90.0, 4.0, 8.0)}  # the first call compiles
    assert cost.interleaved(ways, 2) == {"a": [1.0, 2.0], "b": [4.0, 8.0]}


def test_ratios_are_medians_of_pairs_and_count_the_teacher() -> None:
    one = np.array([1.0, 1.1, 1.0, 0.9, 1.0, 1.0, 8.0])  # once the machine was busy, and slowed all alike
    found = Cost(
        64,
        False,
        {
            "undefended": tuple(one),
            "distillation_teacher": tuple(one),
            "distilled": tuple(1.2 * one),
            "gradient_regularized": tuple(2.5 * one),
        },
        {"undefended": 30, "distillation_teacher": 20, "distilled": 30, "gradient_regularized": 30},
    )
    assert found.ratio("undefended").value == 1
    assert found.ratio("gradient_regularized").value == pytest.approx(2.5)
    assert found.ratio("gradient_regularized").high == pytest.approx(2.5)
    assert found.ratio("distilled").value == pytest.approx(1.2 + 20 / 30)
    assert found.trainings("distilled") == ("distillation_teacher", "distilled")


def test_every_model_is_timed_beside_the_undefended_one(small_digits: Dataset) -> None:
    schedule = train.Schedule(epochs=1, batch=32)
    found = cost.measure(small_digits, ["distilled", "double_backprop"], schedule, 6, torch.device("cpu"))
    assert set(found.seconds) == {"undefended", "distilled", "double_backprop", "distillation_teacher"}
    assert all(len(seconds) == 6 and min(seconds) > 0 for seconds in found.seconds.values())
    assert (found.batch, found.compiled) == (32, False)
    assert set(found.steps.values()) == {len(small_digits.train_images) // 32}


def test_a_teacher_stops_early_in_the_long_schedule(
    small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "COMPILE_FROM_STEPS", 10**9)
    long = dataclasses.replace(train.SCHEDULES["long"], batch=8)
    found = cost.measure(small_digits, ["distilled"], long, 6, torch.device("cpu"))
    assert found.steps == {"undefended": 15_000, "distilled": 15_000, "distillation_teacher": 10_000}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within PyTorch's compiler
def test_no_objective_is_timed_eagerly_where_the_others_are_compiled(
    small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compile_(function, backend=backend))
    monkeypatch.setattr(train, "COMPILE_FROM_STEPS", 1)
    few = train.Schedule(epochs=1, batch=8)
    with torch._dynamo.config.patch(recompile_limit=1):
        assert cost.measure(small_digits, ["distilled"], few, 6, torch.device("cpu")).compiled
    assert len(graphs) == 2  # undefended; the teacher and the distilled model have the same
    torch._dynamo.reset()

"""Distillation of a detector: boxes and scores count on scales of their own, and where the teacher sees something."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from onnxprune.data.detection.heads import Head, Part
from onnxprune.training.detections import distance_of_detector

PLACES = 21
HEAD = Head((64, 64), Part(0, 0, 4, 1), Part(0, 4, None, 1))


def teacher(scale: float = 1.0) -> Tensor:
    """One object, at place 5: [1, 4 + 3, 21]."""
    boxes = torch.rand(1, 4, PLACES, generator=torch.Generator().manual_seed(0)) * 30 + 10
    scores = torch.full((1, 3, PLACES), 1e-3)
    scores[0, 1, 5] = 0.9
    return torch.cat([boxes * scale, scores], 1)


def distance(mine: Tensor, theirs: Tensor, head: Head = HEAD) -> float:
    return float(distance_of_detector(head, [mine], [theirs]))


def moved(box: float = 0.0, score: float = 0.0, place: int = 5, scale: float = 1.0) -> Tensor:
    output = teacher(scale).clone()
    output[0, :4, place] += box * scale
    output[0, 4:, place] += score
    return output


def test_it_is_zero_where_both_are_alike() -> None:
    assert distance(teacher(), teacher()) == pytest.approx(0, abs=1e-6)


def test_boxes_count_only_where_the_teacher_sees_something() -> None:
    assert distance(moved(box=5, place=7), teacher()) < 0.02 * distance(moved(box=5), teacher())


def test_the_unit_of_boxes_does_not_matter() -> None:
    shares = distance(moved(box=5, scale=1 / 64), teacher(1 / 64))
    assert shares == pytest.approx(distance(moved(box=5), teacher()), rel=1e-3)


def test_scores_count_beside_boxes_of_many_pixels() -> None:
    lost = moved()
    lost[0, 5, 5] = 0.1
    assert distance(lost, teacher()) > 1.0


def test_corners_and_a_grid_are_measured_by_the_sides_too() -> None:
    form = teacher()
    corners = form.clone()
    corners[:, :2], corners[:, 2:4] = form[:, :2] - form[:, 2:4] / 2, form[:, :2] + form[:, 2:4] / 2
    other = corners.clone()
    other[0, :4, 5] += 1.0
    shifted = form.clone()
    shifted[0, :2, 5] += 1.0
    by_corners = distance(other, corners, replace(HEAD, form="corners"))
    by_centres = distance(shifted, form)
    assert by_corners == pytest.approx(2 * by_centres, rel=1e-3)
    grid = form.clone()
    grid[:, 2:4] = form[:, 2:4].log()
    moved_grid = grid.clone()
    moved_grid[0, :2, 5] += 1.0
    assert distance(moved_grid, grid, replace(HEAD, form="grid")) == pytest.approx(by_centres, rel=1e-3)


def test_an_objectness_counts_into_the_scores() -> None:
    joined = torch.cat([teacher()[:, :4], torch.full((1, 1, PLACES), 1.0), teacher()[:, 4:]], 1)
    head = Head((64, 64), Part(0, 0, 4, 1), Part(0, 5, None, 1), Part(0, 4, 5, 1))
    blind = joined.clone()
    blind[0, 4, 5] = 0.1
    assert distance(blind, joined, head) > 1.0


def test_gradients_are_finite_where_scores_are_at_their_ends() -> None:
    mine = teacher().clone()
    mine[0, 4:, 0], mine[0, 4:, 1] = 0.0, 1.0
    mine.requires_grad_()
    distance_of_detector(HEAD, [mine], [teacher()]).backward()
    assert mine.grad is not None and bool(torch.isfinite(mine.grad).all())

"""What a run's state takes, counted by hand."""

from __future__ import annotations

from fewstep.planning.footprint import state_bytes


def parameters(model) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def test_weights_once_and_three_times_what_a_stage_trains(small_run):
    run = small_run(nodes=3)
    buffers = sum(
        b.numel() * b.element_size() for model in (run.student, run.fake, run.teacher) for b in model.buffers()
    )
    one = parameters(run.teacher)
    # Student, fake score and teacher; of the two trained ones a gradient and two moments in the
    # second stage, which is the larger.
    assert state_bytes(run.stages, run.teacher) == 3 * one + buffers + 3 * 2 * one
    assert state_bytes(run.stages[:1], run.teacher) == 2 * one + buffers * 2 // 3 + 3 * one

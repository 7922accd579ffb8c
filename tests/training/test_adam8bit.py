"""Adam with moments of 8 bits: its bytes, its steps, its runs, and where it is refused.

What needs bitsandbytes is skipped where that is not installed; it works on the CPU.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from test_trainer import equal
from torch import nn

from fewstep.errors import UserError
from fewstep.planning import plan_recipe
from fewstep.planning.footprint import state_bytes
from fewstep.recipes import load_recipe
from fewstep.system.files import read_tensors
from fewstep.training import SGD, Adam, Adam8bit, Optimizer, Phase, Settings, Silent, Stage
from fewstep.training.layout import Sharded
from fewstep.training.optimizer import step_unless
from fewstep.training.saving.checkpoint import Checkpoint
from fewstep.training.saving.optimizer_states import optimizer_tensors, restore_optimizer

SHAPES = ((64, 64), (100, 100), (4097,), (4095,), (3,), ())


@pytest.fixture
def library():
    """The library, where it is there."""
    return pytest.importorskip("bitsandbytes", reason="the extra 'bitsandbytes' is not installed")


@pytest.fixture
def without_library(monkeypatch):
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def stepped(optimizer: Optimizer, parameters: list[nn.Parameter], steps: int = 3) -> torch.optim.Optimizer:
    built = optimizer.build(parameters)
    for step in range(steps):
        for parameter in parameters:
            torch.manual_seed(step)
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
        step_unless(built, torch.zeros(()))
    return built


def remembered(built: torch.optim.Optimizer) -> int:
    """Bytes of the distinct tensors that an optimizer remembers, its counters left out."""
    held = [value for entry in built.state.values() for key, value in entry.items() if key != "step"]
    return sum({value.data_ptr(): value.untyped_storage().nbytes() for value in held}.values())


def eight_bits(run, **changes) -> list[Stage]:
    """The stages of a small run, its optimizers of 8 bits."""
    return [
        replace(
            stage,
            phases=[replace(phase, optimizer=Adam8bit(phase.optimizer.lr, **changes)) for phase in stage.phases],
        )
        for stage in run.stages
    ]


def test_bytes_of_moments_counted_by_hand():
    """Two bytes a number and two scales of float32 for each 256, and the two maps once; below 4096
    numbers two of float32.
    """
    big, odd, small = (torch.empty(size, device="meta") for size in (2560, 4097, 10))
    many = torch.empty(2560, 256, device="meta")
    assert Adam8bit().moment_bytes([big, small]) == 8 * 2560 + 80
    assert Adam8bit().moment_bytes([many]) == 2 * 2560 * 256 + 8 * 2560 + 2048
    assert Adam8bit().moment_bytes([odd, many, small]) == 2 * 4097 + 8 * 17 + 2 * 2560 * 256 + 8 * 2560 + 2048 + 80
    assert Adam().moment_bytes([big, small]) == 8 * 2570
    assert Adam().moment_bytes([big.bfloat16()]) == 4 * 2560
    assert Adam8bit().moment_bytes([big.bfloat16()]) == 8 * 2560
    assert SGD().moment_bytes([big]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [Adam(), SGD(), Adam8bit()])
def test_bytes_of_moments_are_those_that_are_there(optimizer, dtype, request):
    if isinstance(optimizer, Adam8bit):
        request.getfixturevalue("library")
    parameters = weights(dtype)
    assert remembered(stepped(optimizer, parameters)) == optimizer.moment_bytes(parameters)


def test_a_plan_counts_them_without_the_library(small_run, without_library):
    run = small_run(nodes=3, width=64)
    trained = [p for phase in run.stages[-1].phases for p in phase.trained.parameters()]
    saved = sum(Adam().moment_bytes([p]) for p in trained) - sum(
        Adam8bit().moment_bytes(phase.trained.parameters()) for phase in run.stages[-1].phases
    )
    assert saved > 0
    assert state_bytes(run.stages, run.teacher) - state_bytes(eight_bits(run), run.teacher) == saved
    short = "method.optimizer.kind=adam8bit", "method.fake.optimizer.kind=adam8bit"
    long, less = (plan_recipe("digits-diff-instruct", changes) for changes in ((), short))
    assert less.settings[0].state < long.settings[0].state
    assert less.checkpoint_bytes - long.checkpoint_bytes == less.settings[0].state - long.settings[0].state
    assert (less.evaluations, less.graphs) == (long.evaluations, long.graphs)


def test_a_recipe_asks_for_it_and_a_description_gives_it_back():
    recipe = load_recipe("digits-disback", ["method.optimizer={kind: adam8bit, lr: 1.0e-3, betas: [0.5, 0.9]}"])
    asked = Adam8bit(1e-3, betas=(0.5, 0.9))
    assert recipe.method.optimizer == asked
    assert Optimizer.from_description(asked.describe()) == asked
    assert asked != Adam(1e-3, betas=(0.5, 0.9))


def test_without_the_library_a_run_is_refused_before_its_first_step(small_run, without_library):
    """Also where the phase's stage would begin only later."""
    run = small_run(nodes=3)
    run.stages = [run.stages[0], eight_bits(run)[1]]
    with pytest.raises(
        UserError,
        match=r"^phase 'student': has 'optimizer\.kind: adam8bit', which needs bitsandbytes, and that is not "
        r"installed: pip install 'fewstep\[bitsandbytes\]', or use 'optimizer\.kind: adam'\.$",
    ):
        run.trainer()
    with pytest.raises(UserError, match="not installed"):
        Adam8bit().build(weights())


def test_sharded_parameters_are_refused(small_run, monkeypatch):
    run = small_run()
    run.stages = eight_bits(run)
    monkeypatch.setattr("fewstep.training.trainer.build_layout", lambda *_: Sharded())
    with pytest.raises(
        UserError, match=r"^phase 'student': has .* that 'distributed\.mode: fsdp' divides; use .*'adam'|kind: adam'"
    ):
        run.trainer()


def test_what_an_optimizer_keeps_in_mappings_and_numbers_is_saved_as_tensors_and_comes_back():
    class Nested(torch.optim.SGD):
        """Remembers as libraries do, and is given back what it is given."""

        def load_state_dict(self, given):
            self.given = given["state"]

    class Held(Checkpoint):
        def __init__(self, tensors):
            self.tensors = tensors

        def read(self, prefix, like):
            return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    first, second = (Nested(weights(), lr=0.1) for _ in range(2))
    state = {"step": 3, "inner": {"short": torch.arange(4, dtype=torch.uint8), "scale": torch.tensor(2.0)}}
    first.state[first.param_groups[0]["params"][1]] = state
    tensors = optimizer_tensors(first, "optimizer/student")
    assert set(tensors) == {f"optimizer/student/1/{name}" for name in ("step", "inner/short", "inner/scale")}
    restore_optimizer(second, "optimizer/student", Held(tensors))
    found = second.given[1]
    assert (found["step"], type(found["step"])) == (3, int)
    assert found["inner"]["short"].dtype == torch.uint8
    assert torch.equal(found["inner"]["short"], state["inner"]["short"])
    assert torch.equal(found["inner"]["scale"], state["inner"]["scale"])


def test_its_steps_are_adams_up_to_what_8_bits_round(library):
    """Those of small tensors to float32's rounding; of others nearly all, for what is rounded is
    remembered alone, and a square that is small beside its block's largest loses most.
    """
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    short, long, start = weights(), weights(), weights()
    for optimizer, parameters in ((Adam8bit(**settings), short), (Adam(**settings), long)):
        stepped(optimizer, parameters, 20)
    for a, b, s in zip(short, long, start, strict=True):
        if a.numel() < 4096:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert not torch.equal(a, b)
            assert float(((a - b).norm() / (b - s).norm()).detach()) < 0.1


def test_a_step_that_is_left_out_changes_no_bit(library):
    parameters = weights()
    built = stepped(Adam8bit(0.1, weight_decay=0.1, betas=(0.9, 0.99)), parameters)

    def everything() -> list[torch.Tensor]:
        return [value.detach().clone() for value in (*parameters, *optimizer_tensors(built, "o").values())]

    before = everything()
    for gradient in (math.nan, 1.0):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        step_unless(built, torch.ones(()))
        assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    step_unless(built, torch.zeros(()))
    assert not torch.equal(parameters[0], before[0])


class Leaving(Silent):
    """Ends the run after so many steps."""

    def __init__(self, after: int):
        self.left = after

    def step(self, *_):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_an_interrupted_run_is_the_whole_run_bit_for_bit(small_run, library, kind):
    settings = Settings(batch=8, log_every=2, checkpoint_every=5, checkpoints=kind)
    whole, cut = (small_run(name, nodes=3, steps=12, width=64) for name in ("whole", "cut"))
    again = small_run("cut", nodes=3, steps=12, width=64)
    for run in (whole, cut, again):
        run.stages = eight_bits(run, betas=(0.9, 0.99))
    last = whole.trainer(settings=settings)
    last.fit()
    with pytest.raises(KeyboardInterrupt):
        cut.trainer(settings=settings, listeners=[Leaving(13)]).fit()
    resumed = again.trainer(settings=settings)
    resumed.fit(resume=True)
    assert equal(whole.student, again.student)
    assert equal(whole.fake, again.fake)
    assert equal(last.average, resumed.average)
    ends = [sorted((run.folder / "checkpoints").iterdir())[-1] for run in (whole, again)]
    if kind == "file":
        (one, _), (other, _) = (read_tensors(path) for path in ends)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        assert any(value.dtype == torch.uint8 for value in one.values())


def test_a_network_with_two_optimizers_has_the_moments_of_both(small_run):
    run = small_run()
    (student, _) = run.stages[0].phases
    twice = Stage("s", 1, [student, Phase("more", run.student, student.terms, SGD())])
    both = Stage("s", 1, [student, Phase("more", run.student, student.terms, Adam())])
    assert state_bytes([both]) - state_bytes([twice]) == Adam().moment_bytes(run.student.parameters())

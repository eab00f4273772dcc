"""The loop step by step: what it logs, when it acts, how it stops."""

from __future__ import annotations

import math
import os
import signal
import threading

import pytest
import torch
from torch import nn

from steelyard.runs.events import read_events
from steelyard.runs.loop import At, Interrupted
from steelyard.runs.optimizers import rate


def of_kind(folder, kind: str) -> list[dict]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == kind]


def press_ctrl_c(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what is logged ------------------------------------------------------------------------------


def test_a_private_step_tells_neither_its_loss_nor_its_size(new_training):
    training = new_training()
    sizes = {len(new_training().sampler.draw()) for _ in range(3)}
    assert training._one_step() == (24.0, None)
    assert sizes != {24}  # the batch drawn had another size


def test_without_privacy_size_and_loss_are_the_batch_s_own(new_training):
    training, drawn = new_training(epsilon=None), new_training(epsilon=None).sampler.draw()
    x, y = training.problem.batch(drawn)
    expected = float(training.problem.losses(training.model, x, y).detach().mean())
    size, loss = training._one_step()
    assert size == len(drawn) != 24
    assert loss == pytest.approx(expected, rel=1e-6)


def test_events_of_a_private_run(new_training, carry_out, tmp_path):
    training = new_training(steps=6, evaluate_every=4, checkpoint_every=5, schedule="linear")
    carry_out(training, tmp_path)
    trained = of_kind(tmp_path, "train")
    assert [event["step"] for event in trained] == [1, 2, 3, 4, 5, 6]
    assert all(event["loss"] is None for event in trained)
    spent = [event["epsilon"] for event in trained]
    assert spent == sorted(spent)
    assert 2.9 < spent[-1] <= 3.0
    assert [event["step"] for event in of_kind(tmp_path, "eval")] == [4, 6]
    assert [event["step"] for event in of_kind(tmp_path, "checkpoint")] == [0, 5, 6]
    last = of_kind(tmp_path, "eval")[-1]
    assert last.keys() == {"time", "kind", "step", "split", "n", "epsilon", "loss", "accuracy"}


def test_a_run_without_privacy_logs_its_loss_and_spends_nothing(new_training, carry_out, tmp_path):
    carry_out(new_training(epsilon=None), tmp_path)
    trained = of_kind(tmp_path, "train")
    assert all(math.isfinite(event["loss"]) for event in trained)
    assert all(event["epsilon"] is None for event in trained)


# -- one step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 5, 96])
def test_without_privacy_a_step_divides_by_the_expected_batch(new_training, micro_batch):
    training = new_training(epsilon=None, momentum=0.0, micro_batch=micro_batch)
    reference = new_training(epsilon=None)
    x, y = reference.problem.batch(reference.sampler.draw())
    (reference.problem.losses(reference.model, x, y).sum() / 24).backward()
    before = [p.detach().clone() for p in training.model.parameters()]
    training._one_step()
    for p, old, twin in zip(
        training.model.parameters(), before, reference.model.parameters(), strict=True
    ):
        torch.testing.assert_close(p, old - 0.5 * twin.grad, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_is_a_step_under_privacy_and_none_without(new_training, monkeypatch):
    nobody = torch.zeros(0, dtype=torch.int64)
    for epsilon, moves in ((3.0, True), (None, False)):
        training = new_training(epsilon=epsilon)
        monkeypatch.setattr(training.sampler, "draw", lambda: nobody)
        before = training.model[1].weight.detach().clone()
        training._one_step()
        assert torch.equal(before, training.model[1].weight) is not moves
        if training.ledger is not None:
            assert training.ledger.steps == 1


def test_the_average_is_the_exponential_one_and_is_what_is_released(
    new_training, carry_out, tmp_path
):
    averaged = new_training(average=0.75, epsilon=None)
    plain = new_training(epsilon=None)
    wanted: dict[str, torch.Tensor] = {}
    for _ in range(6):
        plain._one_step()
        for name, tensor in plain.model.state_dict().items():
            old = wanted.get(name, tensor.clone())
            wanted[name] = 0.75 * old + 0.25 * tensor
    released = carry_out(averaged, tmp_path)
    for name, tensor in wanted.items():
        torch.testing.assert_close(released[name], tensor)
    assert not same(released, dict(averaged.model.state_dict()))


def test_diverging_names_the_step_and_the_fix(new_training, carry_out, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"not finite at step \d+: lower --lr \(now 1e\+30"
    ):
        carry_out(new_training(epsilon=None, lr=1e30, steps=20), tmp_path)


@pytest.mark.parametrize("epsilon", [3.0, None])
def test_dropout_follows_the_seed_and_not_what_was_drawn_before(
    new_training, carry_out, tmp_path, epsilon
):
    def weights(name: str, before: int, seed: int = 0) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(before)
        training = new_training(model=model, epsilon=epsilon, seed=seed, noise_seed=4)
        training.sampler._generator.manual_seed(9)
        return carry_out(training, tmp_path / name)

    assert same(weights("a", before=10), weights("b", before=11))
    assert not same(weights("c", before=10), weights("d", before=10, seed=1))


def test_schedules(tiny_config):
    def factors(**changes: object) -> list[float]:
        return [rate(tiny_config.replace(**changes), step, 8) for step in range(9)]

    assert factors() == [1.0] * 9
    assert factors(schedule="linear") == pytest.approx([1 - step / 8 for step in range(9)])
    cosine = factors(schedule="cosine", warmup=4)
    assert cosine[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert cosine[4:] == pytest.approx([(1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)])


def test_the_optimizer_follows_the_schedule(new_training, carry_out, tmp_path):
    carry_out(new_training(schedule="linear", steps=4), tmp_path)
    rates = [event["lr"] for event in of_kind(tmp_path, "train")]
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])  # what each step was taken with


# -- phases --------------------------------------------------------------------------------------


def test_phases_happen_once_before_their_step(new_training, carry_out, tmp_path):
    seen: list[tuple[str, int]] = []

    def note(name: str) -> At:
        step = int(name[-1])
        return At(step=step, name=name, action=lambda run: seen.append((name, run.step)))

    carry_out(new_training(actions=[note("b3"), note("a0"), note("c3"), note("d9")]), tmp_path)
    assert seen == [("a0", 0), ("b3", 3), ("c3", 3)]
    assert [(e["name"], e["step"]) for e in of_kind(tmp_path, "phase")] == seen


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_phases_happen_once_across_a_resume(new_training, carry_out, tmp_path, stop):
    def slower(run) -> None:
        run.schedule.scheduler.base_lrs = [0.01]
        done.append(run.step)

    done: list[int] = []
    phase = At(step=3, name="slower", action=slower)
    whole = carry_out(new_training(actions=[phase]), tmp_path / "whole")
    assert done == [3]
    done.clear()
    interrupt = At(step=stop - 1, name="ctrl-c", action=press_ctrl_c)
    with pytest.raises(Interrupted):
        carry_out(new_training(actions=[phase, interrupt]), tmp_path / "cut")
    resumed = new_training(actions=[phase])
    resumed.resume(tmp_path / "cut")
    assert resumed.step == stop
    assert same(whole, carry_out(resumed, tmp_path / "cut"))
    assert done == [3]
    names = [event["name"] for event in of_kind(tmp_path / "cut", "phase")]
    assert names.count("slower") == 1


# -- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3, 5])
def test_ctrl_c_finishes_the_step_and_saves_it(new_training, carry_out, tmp_path, at):
    action = At(step=at, name="ctrl-c", action=press_ctrl_c)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        carry_out(new_training(actions=[action], checkpoint_every=100), tmp_path)
    assert caught.value.step == at + 1  # also in the very last step
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "checkpoints" / f"step-{at + 1:08d}").is_dir()
    assert [event["step"] for event in of_kind(tmp_path, "interrupt")] == [at + 1]


def test_a_second_ctrl_c_stops_at_once(new_training, carry_out, tmp_path):
    def twice(*_: object) -> None:
        press_ctrl_c()
        press_ctrl_c()

    action = At(step=2, name="ctrl-c", action=twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        carry_out(new_training(actions=[action]), tmp_path)
    assert not isinstance(caught.value, Interrupted)
    assert of_kind(tmp_path, "interrupt") == []


def test_a_run_in_another_thread_needs_no_signals(new_training, carry_out, tmp_path):
    results: list[dict] = []
    work = threading.Thread(
        target=lambda: results.append(carry_out(new_training(), tmp_path / "a"))
    )
    work.start()
    work.join()
    assert same(results[0], carry_out(new_training(), tmp_path / "b"))


# -- resume --------------------------------------------------------------------------------------


def test_a_death_before_any_checkpoint_of_a_step_draws_the_same_noise_again(
    new_training, carry_out, tmp_path
):
    def die(*_: object) -> None:
        raise OSError("power cut")

    training = new_training(
        actions=[At(step=3, name="die", action=die)], noise_seed=None, checkpoint_every=100
    )
    with pytest.raises(OSError, match="power cut"):
        carry_out(training, tmp_path)
    third = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    resumed = new_training(noise_seed=None)
    resumed.resume(tmp_path)
    assert resumed.step == 0
    for _ in range(3):
        resumed._one_step()
    assert same(third, dict(resumed.model.state_dict()))


def test_nothing_left_to_do_still_measures(new_training, carry_out, tmp_path):
    whole = carry_out(new_training(), tmp_path)
    resumed = new_training()
    assert resumed.resume(tmp_path) == []
    assert resumed.step == 6
    assert resumed.evaluate() == {
        name: of_kind(tmp_path, "eval")[-1][name] for name in ("loss", "accuracy")
    }
    assert same(whole, carry_out(resumed, tmp_path))


def test_a_checkpoint_of_another_run_is_refused(new_training, carry_out, tmp_path):
    carry_out(new_training(), tmp_path)
    other = new_training()
    other.run_id = "other"
    with pytest.raises(ValueError, match="belongs to run 'tiny', not to 'other'"):
        other.resume(tmp_path)


def test_other_data_are_refused(new_training, carry_out, tmp_path):
    carry_out(new_training(), tmp_path)
    other = new_training(batch=12)
    with pytest.raises(ValueError, match=r"the saved sampler drew from n=96 with q=0\.25"):
        other.resume(tmp_path)


def test_a_clip_that_bounds_nothing_is_refused(new_training):
    with pytest.raises(ValueError, match="flat:inf bounds nothing"):
        new_training(clip="flat:inf")
    new_training(clip="flat:inf", epsilon=None)  # without privacy nothing is clipped

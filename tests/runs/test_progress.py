from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from steelyard.runs.progress import RunProgress

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=40)


def terminal(width: int) -> Console:
    return Console(file=Utf8(), width=width, force_terminal=True, force_interactive=True)


class Utf8(io.StringIO):
    encoding = "utf-8"


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(console: Console, total: int = 200, private: bool = True, **options) -> str:
    with RunProgress(total, private, console, target_epsilon=3.0, **options) as progress:
        for step in range(options.get("start", 0) + 1, total + 1):
            progress.update(
                *(step, 1234.4, 3.0 * step / total),
                loss=None if private else 2.5 / step,
                accuracy=0.8125 if step == total // 2 else None,
            )
            if step == 3:
                progress.note("checkpoint saved [step 3]")
    return written(console)


def test_a_bar_names_what_its_speed_counts():
    text = run(plain_console(), private=False, unit="steps")
    assert "1,234 steps/s" in text
    assert "samples" not in text


# --- not a terminal ------------------------------------------------------------------------------


def test_a_log_gets_a_line_every_tenth_of_the_way():
    text = run(plain_console())
    assert not CONTROL.search(text)
    lines = text.splitlines()
    assert lines.pop(1) == "checkpoint saved [step 3]"  # rich markup is not interpreted
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [1, *range(20, 201, 20)]
    assert all(line.startswith("training: ") for line in lines)
    assert lines[-1] == (
        "training: 200/200, 1,234 samples/s, ETA 0:00:00, epsilon 3.00 of 3.00, test 81.2 %"
    )  # one line, though the console is 40 wide
    assert "test" not in lines[3]
    assert "test 81.2 %" in lines[6]  # the last known accuracy


def test_a_short_run_gets_a_line_for_every_step():
    assert len(run(plain_console(), total=3).splitlines()) == 3 + 1


def test_a_resumed_run_goes_on_counting():
    lines = run(plain_console(), start=150).splitlines()
    assert [line.split()[1].rstrip(",") for line in lines] == [
        *("151/200", "160/200", "180/200", "200/200"),
    ]


def test_a_run_without_privacy_shows_the_loss_and_no_epsilon():
    text = run(plain_console(), private=False)
    assert "epsilon" not in text
    assert "loss 0.013" in text


def test_a_private_run_never_shows_a_loss():
    with pytest.raises(ValueError, match="a private run shows no training loss"):
        RunProgress(10, True, plain_console()).update(1, 1.0, loss=0.5)


def test_a_run_without_steps_is_refused():
    with pytest.raises(ValueError, match="total_steps=0"):
        RunProgress(0, True, plain_console())


def test_the_eta_is_the_mean_time_of_a_step_times_what_is_left(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = plain_console()
    with RunProgress(1100, False, console, start=100) as progress:
        now[0] += 72.5
        progress.update(110, 1.0)
    assert "ETA 1:59:38" in written(console)  # 7.25 s a step, 990 left: 7177.5 s


def test_the_default_console_is_standard_error():
    script = (
        "import sys; from steelyard.runs.progress import RunProgress\n"
        "with RunProgress(2, False) as p: p.update(2, 1.0)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.startswith("training: 2/2")
    assert len(done.stderr.splitlines()) == 1


# --- a terminal ----------------------------------------------------------------------------------


def frames(text: str) -> list[str]:
    """What stood in the bar's line, one after the other."""
    return [line for line in re.split(r"[\r\n]+", CONTROL.sub("", text)) if "━" in line]


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_terminal_gets_one_bar_that_fits(width):
    text = run(terminal(width))
    assert "checkpoint saved [step 3]" in text
    assert "\x1b[2J" not in text  # the screen is never cleared: that flickers
    last = frames(text)[-1]
    assert len(last.rstrip()) <= width
    assert last.count("━") >= 8
    assert "ε 3.00 of 3.00" in last
    assert ("test 81.2 %" in last) == (width >= 60)
    assert ("1,234 samples/s" in last) == (width >= 80)
    assert last.startswith("training ") == (width >= 140)


def test_the_bar_stands_still_while_the_numbers_change():
    console = terminal(100)
    lengths = set()
    with RunProgress(1000, False, console) as progress:
        for step, speed in ((1, 3.2), (50, 21_000.0), (1000, 812.0)):
            progress.update(step, speed, loss=2.0, accuracy=0.5)
            lengths.add(len("  ".join(progress._parts(step, speed).values())))
    assert len(lengths) == 1


def test_an_update_costs_little():
    """Drawing is on a timer: a thousand updates leave a handful of frames, not a thousand."""
    console = terminal(100)
    with RunProgress(1000, False, console) as progress:
        for step in range(1, 1001):
            progress.update(step, 1.0)
    assert len(frames(written(console))) < 20


def test_an_error_ends_the_bar_and_shows_the_cursor():
    console = terminal(80)
    with contextlib.suppress(KeyboardInterrupt), RunProgress(10, True, console) as progress:
        progress.update(1, 1.0)
        raise KeyboardInterrupt
    assert written(console).endswith("\x1b[?25h")


def test_an_old_terminal_without_unicode_spells_epsilon():
    class Ascii(io.StringIO):
        encoding = "ascii"

    console = Console(file=Ascii(), width=100, force_terminal=True, force_interactive=True)
    text = run(console)
    assert "epsilon 3.00 of 3.00" in text
    assert text.isascii()


def test_nothing_heavy_is_loaded_before_it_is_needed():
    script = (
        "import sys, steelyard.runs.progress, steelyard.runs.events, steelyard.runs.environment\n"
        "sys.exit(bool({'rich', 'torch', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

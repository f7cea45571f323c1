from __future__ import annotations

import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.loop.progress import ProgressBar, make_curves


def test_without_a_terminal_it_prints_lines_with_loss_speed_and_time_left(capsys):
    progress = ProgressBar(num_steps=10, first_step=0, quiet=False)
    progress.update(1, 5.0, 1234.5, 3723.0, 1e-3, force=True)
    progress.update(2, 5.0, 1234.5, 3723.0, 1e-3, force=False)
    progress.say("held out")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 1/10  loss 5.000  1,234 tok/s  ETA 1:02:03  lr 1.00e-03", "held out"]


def test_quiet_prints_nothing(capsys):
    progress = ProgressBar(num_steps=None, first_step=0, quiet=True)
    progress.update(1, 5.0, 1.0, float("inf"), 1e-3, force=True)
    progress.say("held out")
    assert capsys.readouterr() == ("", "")


def test_logs_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="tensorboard, wandb or none"):
        make_curves("csv", tmp_path, {}, 0)

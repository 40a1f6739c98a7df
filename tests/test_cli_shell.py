"""The command line in a shell: progress, `--quiet`, exit statuses, completion, and `FUSER_LOG`."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fuser.cli import main
from fuser.report_log import switch_on
from tests.conftest import ROOT, Run

SLOW = """
import time
import mlx.core as mx
time.sleep({})
def f(x):
    return mx.softmax(x @ x.T, axis=-1) @ x
"""


def process(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "FUSER_LOG")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**environ, **environment}, check=False)


# -- progress ------------------------------------------------------------------------------------------------


def on_a_terminal(cwd: Path, *arguments: str) -> tuple[str, str]:
    """What a command writes to stdout, a pipe, and to stderr, a terminal."""
    pty = pytest.importorskip("pty", reason="there are no terminals to be had on this system")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fuser", *arguments]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=cwd, env=environment) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not chunk:
                break
            shown += chunk
        os.close(ours)
        assert child.stdout is not None
        stdout = child.stdout.read().decode()
    assert child.returncode == 0, shown
    return stdout, shown.decode()


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(SLOW.format(1.6))
    np.savez(tmp_path / "x.npz", x=np.ones((4, 4), np.float32))
    return tmp_path


def test_a_step_of_over_a_second_is_shown_on_a_terminal(slow: Path) -> None:
    stdout, shown = on_a_terminal(slow, "verify", "slow:f", "--inputs", "x.npz")
    assert "loading slow:f" in shown and "0:00:01" in shown
    assert "agree with the unfused program" in stdout and "\x1b" not in stdout and "loading" not in stdout


def test_quiet_shows_nothing(slow: Path) -> None:
    assert on_a_terminal(slow, "verify", "slow:f", "--inputs", "x.npz", "--quiet") == ("", "")


def test_short_steps_are_not_shown(slow: Path) -> None:
    (slow / "slow.py").write_text(SLOW.format(0))
    _, shown = on_a_terminal(slow, "verify", "slow:f", "--inputs", "x.npz")
    assert "loading" not in shown


def test_nothing_is_shown_where_stderr_is_no_terminal(slow: Path) -> None:
    done = process("-m", "fuser", "verify", "slow:f", "--inputs", "x.npz", cwd=slow, FORCE_COLOR="1")
    assert done.returncode == 0 and done.stderr == ""


# -- quiet ---------------------------------------------------------------------------------------------------


def test_quiet_run_writes_only_the_outputs(run: Run, llama: Path, tmp_path: Path) -> None:
    result = run("run", llama, "--inputs", llama.parent / "inputs.npz", "--outputs", "out.npz", "-q")
    assert result.exit_code == 0 and result.output == "" and (tmp_path / "out.npz").is_file()


def test_quiet_report_and_convert(run: Run, llama: Path, tmp_path: Path) -> None:
    report = run("report", llama, "-q")
    assert report.stderr == "" and "2 of 2 attentions fused" in report.stdout
    assert run("convert", llama, "out.onnx", "-q").output == "" and (tmp_path / "out.onnx").is_file()


def test_quiet_verify_tells_by_its_status(run: Run, llama: Path) -> None:
    result = run("verify", llama, "--quiet")
    assert result.exit_code == 0 and result.output == ""
    wrong = run("verify", llama, "--quiet", "--rtol", 0)
    assert wrong.exit_code == 1 and "DIFFER" in wrong.stdout and wrong.stderr == ""


def test_quiet_does_not_silence_errors(run: Run) -> None:
    result = run("verify", "nothing.onnx", "--quiet")
    assert result.exit_code == 2 and result.stderr == "error: no such file: 'nothing.onnx'\n"


# -- help, exit statuses -------------------------------------------------------------------------------------


def test_help_has_examples_and_statuses(run: Run) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    documented = re.findall(r"^\| (\d+) \|", page, re.M)
    for words in ([], *([command] for command in main.commands)):
        text = run(*words, "--help").stdout
        assert f"mlx-fuser {' '.join(words)}" in text and "Examples:" in text
        assert re.findall(r"^ +(\d+)  +\w", text, re.M) == documented
    for command in main.commands:
        assert re.search(rf"^mlx-fuser {command} ", page, re.M), command


def test_a_reader_that_leaves(llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuser", "report", str(llama), "--json", "-"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait() == 141


# -- completion ----------------------------------------------------------------------------------------------


def completed(line: str, cwd: Path) -> list[str]:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    code = "from fuser.cli import main; main(prog_name='mlx-fuser')"
    return process("-c", code, cwd=cwd, _MLX_FUSER_COMPLETE="bash_complete", **words).stdout.splitlines()


def test_completion(tmp_path: Path) -> None:
    assert completed("mlx-fuser ver", tmp_path) == ["plain,verify"]
    assert "plain,--quiet" in completed("mlx-fuser bench --q", tmp_path)
    assert completed("mlx-fuser bench mo", tmp_path) == ["file,mo"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_the_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which("bash") is None and shell == "bash":
        pytest.skip("click asks bash for its version, and there is none")
    code = "from fuser.cli import main; main(prog_name='mlx-fuser')"
    done = process("-c", code, cwd=tmp_path, _MLX_FUSER_COMPLETE=f"{shell}_source")
    assert done.returncode == 0 and "_MLX_FUSER_COMPLETE" in done.stdout
    assert f"_MLX_FUSER_COMPLETE={shell}_source" in (ROOT / "docs" / "command-line.md").read_text()


# -- FUSER_LOG -----------------------------------------------------------------------------------------------

PROGRAM = """
import logging
import mlx.core as mx
import fuser
logging.basicConfig(format="twice %(message)s")
def attend(x):
    return mx.softmax(x @ x.swapaxes(-1, -2), axis=-1) @ x
fuser.explain(attend, mx.ones((1, 2, 4, 8)))
fuser.optimize(attend)(mx.ones((1, 2, 4, 8)))
"""


@pytest.mark.parametrize(("value", "lines"), [("explain", 2), ("", 0)])
def test_the_environment_switches_logging_on(tmp_path: Path, value: str, lines: int) -> None:
    done = process("-c", PROGRAM, cwd=tmp_path, FUSER_LOG=value)
    assert done.returncode == 0 and done.stdout == ""
    assert len(done.stderr.splitlines()) == lines
    assert not lines or done.stderr.startswith("fuser: fused: ")


def test_an_unknown_value_is_told_and_harmless(tmp_path: Path) -> None:
    done = process("-c", "import fuser", cwd=tmp_path, FUSER_LOG="everything")
    assert done.returncode == 0
    assert done.stderr == "FUSER_LOG=everything is not known, and does nothing: FUSER_LOG=explain is\n"


def test_switching_on_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("fuser")
    before = log.level, log.propagate, list(log.handlers)
    try:
        switch_on("explain")
        switch_on(" Explain ")
        log.info("%s of %s", 1, 2)
        assert capsys.readouterr().err == "fuser: 1 of 2\n"
    finally:
        log.level, log.propagate, log.handlers[:] = before
        log.setLevel(before[0])

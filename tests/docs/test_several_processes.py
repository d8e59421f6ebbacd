"""The script on the page about several processes runs under torchrun as it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.run.run import open_run

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "custom-loop.md").read_text()


@pytest.mark.slow
def test_the_script_of_the_page_makes_one_record_under_torchrun(tmp_path: Path):
    section = PAGE.partition("## Several processes")[2]
    script = re.findall(r"```py\n(.*?)```\n", section, flags=re.DOTALL)[0]
    (tmp_path / "train.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]  # on a free port
    launch += ["--nproc-per-node", "2", "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    found = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    steps = open_run(str(tmp_path / "runs" / "ranks")).steps()
    assert len(steps) == 10
    assert {len(datums) for datums in steps["datums"]} == {8}
    assert steps["audit_error"].max() < 1e-5

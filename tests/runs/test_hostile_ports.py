"""Processes that train together on one machine listen on loopback only, and each launch has ports of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import json, os, pathlib, sys
import torch
import torch.distributed as distributed
from accelerate import PartialState
state = PartialState(cpu=True)
total = torch.ones(1)
distributed.all_reduce(total)
mine = {}
for process in (os.getpid(), os.getppid()):
    for descriptor in pathlib.Path(f"/proc/{process}/fd").iterdir():
        try:
            place = os.readlink(descriptor)
        except OSError:
            continue
        if place.startswith("socket:["):
            mine[place[8:-1]] = process
listening = []
for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[3] == "0A" and parts[9] in mine:
            listening.append(parts[1])
said = {"processes": state.num_processes, "sum": total.item(), "listening": listening}
said["port"] = os.environ["MASTER_PORT"]
pathlib.Path(sys.argv[1], f"{state.process_index}.json").write_text(json.dumps(said))
distributed.barrier()
distributed.destroy_process_group()
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for ports in /proc")


@pytest.mark.slow
def test_nothing_of_a_launch_can_be_reached_from_another_machine(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    command = [sys.executable, "-m", "spa_recipes.run.launch", "--num_processes=2", "--cpu", "probe.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with socket.create_server(("0.0.0.0", 0)) as taken:  # torch's own port would not matter any more
        environment["MASTER_PORT"] = str(taken.getsockname()[1])
        launched = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            with (tmp_path / name / "said").open("w") as said:  # its input stays open: it ends with who started it
                launched.append(
                    subprocess.Popen(
                        [*command, name], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stderr=said
                    )
                )
        for name, process in zip(("one", "two"), launched, strict=True):
            assert process.wait(timeout=200) == 0, (tmp_path / name / "said").read_text()
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/*.json"))]
    assert [each["processes"] for each in found] == [2, 2, 2, 2]
    assert [each["sum"] for each in found] == [2.0] * 4
    assert len({each["port"] for each in found}) == 2
    assert all(each["listening"] for each in found)
    loopback = "0100007F"
    assert {place.split(":")[0] for each in found for place in each["listening"]} == {loopback}

from __future__ import annotations

import getpass
import json
import platform
import socket
from pathlib import Path

import torch

import steelyard
from steelyard.runs.environment import available_cores, environment, processor_name

CPUINFO = (
    "processor\t: 0\nmodel name\t: Imaginary CPU @ 3.00GHz\n\nprocessor\t: 1\nmodel name\t: B\n"
)


def test_has_the_promised_fields():
    found = environment("cpu")
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        *("python", "torch", "steelyard", "platform", "cpu", "cores", "threads", "device"),
    ]
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["steelyard"] == steelyard.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == available_cores() >= 1
    assert found["device"] == environment(torch.device("cpu"))["device"] == "cpu"
    assert found["cpu"]


def test_names_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU number {device.index}")
    assert environment("cuda:1")["device"] == "cuda:1 (GPU number 1)"


def test_tells_nothing_of_the_user_or_the_host(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    text = json.dumps(environment())
    secrets = [socket.gethostname(), "secret-host", str(Path.home()), str(Path.cwd())]
    secrets += [getpass.getuser()] if len(getpass.getuser()) > 3 else []
    assert [secret for secret in secrets if len(secret) > 3 and secret in text] == []
    assert str(Path(torch.__file__).parent) not in text


def test_the_processor_comes_from_cpuinfo_or_the_platform(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert processor_name(tmp_path / "cpuinfo") == "Imaginary CPU @ 3.00GHz"
    (tmp_path / "arm").write_text("processor\t: 0\nCPU implementer\t: 0x41\nmodel name\t: \n")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    for absent in ("arm", "none"):
        assert processor_name(tmp_path / absent) == "arm64"

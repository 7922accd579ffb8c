"""``fewstep inspect``: what files say of themselves."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest
import torch

from fewstep.denoisers import save_model
from fewstep.doctor import inspect
from fewstep.errors import UserError
from fewstep.system.files import write_tensors
from fewstep.zoo import digits

WEIGHTS = resources.files("fewstep.zoo") / "weights"


def test_a_model_a_network_and_a_student_say_what_they_are(tmp_path):
    with resources.as_file(WEIGHTS / "digits.safetensors") as path:
        found = inspect(path)
        assert (found["kind"], found["shape"], found["classes"]) == ("denoiser", [1, 8, 8], 10)
        assert found["parameters"] == sum(p.numel() for p in digits().parameters()) == 262_625
        assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found["bytes"] == path.stat().st_size
    with resources.as_file(WEIGHTS / "digits-features.safetensors") as path:
        assert inspect(path)["kind"] == "digit-classifier"
    save_model(tmp_path / "student.safetensors", digits(), {"prior": {"time": 0.5}})
    assert inspect(tmp_path / "student.safetensors")["prior"] == {"time": 0.5}


def test_other_files_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"notes\.txt: can be inspected when it is a \.pkl"):
        inspect(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="there is no such file"):
        inspect(tmp_path / "nowhere.pkl")
    write_tensors(tmp_path / "checkpoint.safetensors", {"a": torch.zeros(2)}, {"progress": {}})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: is not a model file"):
        inspect(tmp_path / "checkpoint.safetensors")
    (tmp_path / "bomb.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"bomb\.pkl: .*os\.system"):
        inspect(tmp_path / "bomb.pkl")

"""The report's table of a run on prompts, measured against its teacher."""

from __future__ import annotations

import json

import pytest
from test_run_report import report, write_run


def entry(**figures: object) -> dict[str, object]:
    return {"fd": 3.0, "fd_spread": 0.1, "nfe": 50.0, "ms_per_image": 9.0, **figures}


def test_prompts_have_columns_of_their_own_and_the_reference_is_said(tmp_path):
    folder = write_run(tmp_path / "run")
    teacher = entry(prompt_accuracy={"all": 0.931, "digit": 0.95}, prompt_diversity=4.0, prompt_diversity_ratio=1.0)
    student = entry(prompt_accuracy={"all": 0.887}, prompt_diversity=3.6, prompt_diversity_ratio=0.9)
    reference = {"samples": 500, "draws": 3, "teacher": {"samples": 5000, "steps": 25, "guidance": 3.0}}
    result = {"teacher": {"25": teacher}, "student": {"1": student}, "reference": reference}
    (folder / "evaluation.json").write_text(json.dumps(result))
    text = report(folder).text
    assert "Prompt accuracy Diversity a prompt, over the teacher's Class accuracy" in text
    assert "Teacher, 25 steps 3.00 ± 0.10 93.1% 100.0%" in text
    assert "Student, 1 step 3.00 ± 0.10 88.7% 90.0%" in text
    assert "Distances are to 5,000 samples of the teacher at 25 steps, guided by 3." in text


@pytest.mark.parametrize("strange", [{"prompt_accuracy": 3}, {"prompt_accuracy": {"all": "x"}}, {}])
def test_without_figures_of_prompts_there_are_no_columns(tmp_path, strange):
    folder = write_run(tmp_path / "run")
    reference = {"samples": 500, "draws": 3, "teacher": {"samples": None, "steps": [], "guidance": "x"}}
    (folder / "evaluation.json").write_text(
        json.dumps({"teacher": {"25": entry(**strange)}, "student": {}, "reference": reference})
    )
    assert "Prompt accuracy" not in report(folder).text

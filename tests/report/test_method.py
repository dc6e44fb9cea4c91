"""The description of the run."""

from typing import Any

import pytest

from delt_hpc.config.schema import Config, Evaluate
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.report import method


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": "stored"}, " Soft labels were stored (in float16). They were tested"),
        (
            {"labels": "stored", "label_format": "top_k", "epochs_kept": 30},
            " Soft labels were stored (the 10 largest logits of each image). The random draws of 30 epochs",
        ),
        ({"epochs_kept": 30}, " The random draws of 30 epochs were repeated until the end. They were tested"),
    ],
)
def test_stored_labels_and_repeated_epochs_are_told(options: dict[str, Any], sentence: str) -> None:
    (step,) = (
        one for one in method.steps(Config(evaluate=Evaluate(**options)), SPECS["digits"]) if one.stage == "evaluate"
    )
    assert sentence in step.text
    (usual,) = (one for one in method.steps(Config(), SPECS["digits"]) if one.stage == "evaluate")
    assert sentence not in usual.text

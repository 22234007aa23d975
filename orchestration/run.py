"""A run: one folder with everything made from one data set, and the stages that fill it.

    run/
      data/            the data set (or a link by path, for own data: `dataset`)
      training_set/    point-in-time rows, one nested row a request
      encoded/         encoder.json, train/ validation/ test/
      evaluator/  mined/  generator/
      bundle/          what serves
      evaluation/      evaluation.json
      report.html

Each stage knows what it was made from and does nothing when that is unchanged; interrupted, it resumes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from degre_prod.artefact import write_json
from degre_prod.config import Settings
from degre_prod.errors import DataError

POINTER = "run.json"


@dataclass(frozen=True)
class Run:
    """Paths of one run, its data set and its settings."""

    folder: Path
    dataset: Path
    settings: Settings

    @property
    def registry(self) -> Path:
        """Feast's SQL registry."""
        return self.folder / "registry.db"

    @property
    def accepted(self) -> Path:
        """The log's accepted requests, there only when some were rejected."""
        return self.folder / "accepted.parquet"

    @property
    def training_set(self) -> Path:
        """Point-in-time rows."""
        return self.folder / "training_set"

    @property
    def encoded(self) -> Path:
        """Encoder and encoded splits."""
        return self.folder / "encoded"

    @property
    def evaluator(self) -> Path:
        """Lookahead Evaluator, value to go, pointwise baseline."""
        return self.folder / "evaluator"

    @property
    def mined(self) -> Path:
        """Mined lists, one file a shard."""
        return self.folder / "mined"

    @property
    def generator(self) -> Path:
        """Online Generator."""
        return self.folder / "generator"

    @property
    def bundle(self) -> Path:
        """What serves."""
        return self.folder / "bundle"

    @property
    def evaluation(self) -> Path:
        """Offline figures."""
        return self.folder / "evaluation"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / "report.html"


def open_run(folder: Path, settings: Settings) -> Run:
    """The run of a folder: its data set is in data/, or where run.json says; raises DataError when there is neither."""
    dataset = folder / "data"
    if (folder / POINTER).is_file():
        dataset = Path(json.loads((folder / POINTER).read_text())["dataset"])
    if not (dataset / "schema.yaml").is_file():
        raise DataError(
            "no data set here: a run keeps it in its data/ folder, e.g. `degre data simulate mixed FOLDER/data`",
            file=str(dataset),
        )
    return Run(folder, dataset, settings)


def create_run(folder: Path, dataset: Path, settings: Settings) -> Run:
    """A run over a data set that stays where it is."""
    if dataset.absolute() != (folder / "data").absolute():
        write_json(folder / POINTER, {"dataset": str(dataset.absolute())})
    return open_run(folder, settings)

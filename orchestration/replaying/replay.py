"""`degre replay`: the bundle's answers to the requests of the last days, compared with what was shown, as one page.

    RUN/replay/
      log/            the requests of the last days (`log`)
      training_set/   the same with the features of their moment
      answers/        what the bundle answers (`answers`), one file a part
      BUNDLE.html     the page, named after the bundle's manifest hash; and BUNDLE.json, its figures

Each is kept with the hash of what it was made from; interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degre_prod.artefact import digest, file_digest, finished, made_from, publish, workplace, write_json
from degre_prod.errors import MismatchError
from degre_prod.schema import load_schema

if TYPE_CHECKING:
    from degre_prod.bundle import Bundle
    from orchestration.run import Run

_FORMAT = 1
JUDGE = "judge.safetensors"


def replay(
    run: Run, bundle_folder: Path, *, days: float = 7.0, judge: Path | None = None, out: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """The page and the figures on it. `judge`: its folder; without it the newest one of the run, else one is trained on the
    run's training set, and where there is none the page does without.

    Raises MismatchError for a bundle of another data set, DataError when there is nothing to replay.
    """
    from degre_prod.bundle import load_bundle
    from orchestration.features.training_set import build_training_set
    from orchestration.replaying.log import recent_log
    from orchestration.replaying.page import write_page
    from orchestration.replaying.summary import summarise

    bundle, schema = load_bundle(bundle_folder), load_schema(run.dataset)
    if bundle.manifest.dataset != schema.name:
        raise MismatchError(
            f"bundle {bundle_folder} is of data set {bundle.manifest.dataset}, run {run.folder} of {schema.name}"
        )
    place = run.folder / "replay"
    place.mkdir(exist_ok=True)
    window = recent_log(run.dataset, schema, days, place / "log")
    build_training_set(run.dataset, run.registry, place / "training_set", log=place / "log" / "log.parquet")
    judge = judge or _judge(run, bundle_folder)
    _answer(place, bundle, judge)
    answers = _read_answers(place / "answers")
    document = {
        "dataset": schema.name,
        "bundle": bundle.manifest.name,
        "manifest_sha256": bundle.manifest_sha256,
        "trained_until": bundle.manifest.training_window[1].isoformat(),
        "from": _iso(window.from_us),
        "to": _iso(window.to_us),
        "days": days,
        "unconfirmed": window.unconfirmed,
        "rejected": window.rejected,
        "judge": None if judge is None else str(judge),
        **summarise(answers, schema.list_length, run.settings.gates.min_effective_samples),
    }
    name = bundle.manifest_sha256[:12]
    write_json(place / f"{name}.json", document)
    return write_page(document, out or place / f"{name}.html"), document


def _answer(place: Path, bundle: Bundle, judge: Path | None) -> None:
    """The folder `answers`, a file for each part of the rows; parts that are there are kept."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from orchestration.replaying.answers import answer_part, load_jury

    torch.set_num_threads(1)
    judged_by = None if judge is None else file_digest(judge / JUDGE)
    key = digest("replay", _FORMAT, made_from(place / "training_set"), bundle.manifest_sha256, judged_by)
    if finished(place / "answers", key):
        return
    folder = workplace(place / "answers", key)
    jury = None if judge is None else load_jury(judge)
    parts = sorted((place / "training_set").glob("part-*.parquet"))
    for part in track(parts, "replay", console=Console(file=sys.stderr), transient=True):
        if not (folder / part.name).is_file():
            answer_part(part, bundle, jury, folder / part.name)
    publish(place / "answers", key)


def _read_answers(folder: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))])


def _judge(run: Run, bundle_folder: Path) -> Path | None:
    """The judge beside the bundle, the newest one of the run, else one trained now, where there is something to train on."""
    from degre_prod.artefact import MARK

    for folder in _judges(run, bundle_folder):
        if (folder / JUDGE).is_file():
            return folder
    if not ((run.encoded / MARK).is_file() and (run.training_set / MARK).is_file()):
        return None
    from orchestration.retrain.judge import train_judge_step
    from orchestration.stages import ray_cluster

    with ray_cluster(run):
        return train_judge_step(run.encoded, run.training_set, run.folder / "judge", run.settings)


def _judges(run: Run, bundle_folder: Path) -> Iterator[Path]:
    yield bundle_folder.absolute().parent / "judge"
    yield run.folder / "judge"
    yield from sorted(run.folder.glob("retrain/[0-9]*/judge"), reverse=True)


def _iso(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, UTC).isoformat(timespec="seconds")

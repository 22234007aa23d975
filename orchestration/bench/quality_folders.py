"""Folders that are made once, and the ways in which the quality benchmark makes its data sets."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from degre_prod.artefact import digest, finished, made_from, publish, workplace, write_json
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.splits import encode_splits
from degre_prod.schema import load_schema
from orchestration.bench.direct_join import join_by_id

FORMAT = 2  # part of every hash: raise it when the same inputs give other results


def step(folder: Path, key: str, work: Callable[[Path], None]) -> None:
    """Do `work` in a workplace and publish it as `folder`; nothing where that was made with the same `key`."""
    if finished(folder, key):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(workplace(folder, key))
    place = workplace(folder, key)
    started = time.process_time()
    work(place)
    write_json(place / "seconds.json", time.process_time() - started)
    for note in place.glob("progress-*.json"):
        note.unlink()
    publish(folder, key)


def seconds_of(folder: Path) -> float:
    """CPU seconds that the step took which made this folder; a step runs on one thread."""
    return float(json.loads((folder / "seconds.json").read_text()))


def encode(dataset: Path, rows: Path, out: Path, *, encoder: Path | None = None) -> Path:
    """Join and encode; with an `encoder` of another log by that one."""
    key = digest("join by id", FORMAT, made_from(dataset))
    step(rows, key, lambda place: join_by_id(dataset, place))
    given = None if encoder is None else load_encoder(encoder)
    schema = load_schema(dataset)
    key = digest("encode", FORMAT, key, given.digest() if given else None)
    step(out, key, lambda place: encode_splits(rows, schema, place, given))
    return out


def keep_newest(encoded: Path, share: float, out: Path) -> None:
    """Write encoder and splits into `out`, of the training requests only the newest `share` (at least one)."""
    for name in ("validation", "test"):
        shutil.copytree(encoded / name, out / name, dirs_exist_ok=True)
    shutil.copy(encoded / "encoder.json", out)
    (out / "train").mkdir(exist_ok=True)
    ids = json.loads((encoded / "train" / "request_ids.json").read_text())
    first = len(ids) - max(1, round(len(ids) * share))  # a log is in the order of time
    for file in (encoded / "train").glob("*.npy"):
        np.save(out / "train" / file.name, np.load(file, mmap_mode="r")[first:], allow_pickle=False)
    write_json(out / "train" / "request_ids.json", ids[first:])

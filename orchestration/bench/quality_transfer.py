"""A generator trained at one shape of request, asked at another: more or fewer candidates, shorter lists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from degre_prod.artefact import digest, made_from, write_json, write_text
from degre_prod.baselines.click_to_top import decoded
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded, save_encoded
from degre_prod.evaluation.methods import input_order
from degre_prod.rows import read_rows
from degre_prod.training.modules import load_generator
from degre_prod.worlds.reference import reference_values
from degre_prod.worlds.simulate import Log, data_schema, draw_log, impressions
from degre_prod.worlds.truth import World
from orchestration.bench.direct_join import join_by_id
from orchestration.bench.quality_steps import SeedRun

REQUESTS: Final = 300
TRANSFERS: Final = {"small": ((8, 4), (6, 4), (12, 4), (8, 3)), "large": ((50, 10), (25, 10), (100, 10), (50, 5))}
_FORMAT = 1


def transferred(run: SeedRun, candidates: int, slots: int) -> dict[str, float]:
    """Mean true value over the reference of fresh requests of this shape: `degre` and the upstream order."""
    generator = run.generator(1.0)
    key = digest("transfer", _FORMAT, made_from(generator), made_from(run.dataset), candidates, slots, REQUESTS)

    def work(place: Path) -> None:
        spec = replace(run.truth.spec, candidates=candidates, list_length=slots)
        world = replace(run.truth, spec=spec)
        log = draw_log(world, REQUESTS, np.random.default_rng([run.seed, 2]))
        encoded = _encode(run, world, log, place)
        lists = {
            "degre": decoded(load_generator(generator), encoded, slots),
            "input_order": input_order(encoded, slots),
        }
        best, _ = reference_values(world, log.user_ids_B, log.candidate_ids_BC)
        told = {
            name: float((world.true_values(log.user_ids_B, log.candidate_ids_BC, of[:, None])[:, 0] / best).mean())
            for name, of in lists.items()
        }
        write_json(place / "transfer.json", told)

    folder = run.made(f"transfer/{candidates}-{slots}", key, work)
    return dict(json.loads((folder / "transfer.json").read_text()))


def _encode(run: SeedRun, world: World, log: Log, place: Path) -> EncodedSet:
    """The requests joined and encoded by the encoder that the generator was trained with."""
    dataset, rows = place / "data", place / "rows"
    dataset.mkdir()
    rows.mkdir()
    schema = data_schema(world.spec, REQUESTS, 0)
    write_text(dataset / "schema.yaml", schema.to_yaml())
    pq.write_table(impressions(log, schema), dataset / "impressions.parquet")
    for role in ("user", "item"):
        (dataset / f"{role}_features.parquet").symlink_to((run.dataset / f"{role}_features.parquet").resolve())
    join_by_id(dataset, rows)
    encoder = load_encoder(run.encoded / "encoder.json")
    read = list(read_rows(rows, schema))
    save_encoded(
        place / "encoded",
        [encoder.encode(row.request, row.user, row.items) for row in read],
        shown=[row.shown_T for row in read],
        feedback=[row.feedback_OT for row in read],
        request_ids=[row.request.request_id for row in read],
        timestamps=[row.request.event_timestamp_us for row in read],
    )
    return load_encoded(place / "encoded")

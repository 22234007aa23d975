"""Encoded requests on disk: one folder a split, one .npy file an array, memory-mapped by the workers.

Arrays of R requests, padded to the split's largest C and T:
    item_num_RCF … context_cat_RF, prior_rank_RC, mask_RC (bool: a candidate is there)
    shown_RT int64 index into the candidates (-1: padding) · feedback_ROT float32 · timestamp_R int64 µs · request_ids.json
    carries_RT bool: the slot carries loss; False for padding and where tracking was lost (null feedback). A slot the user
    never reached does carry loss: leaving is an effect of the list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from degre_prod.artefact import write_json
from degre_prod.encoding.encoder import Encoded

CANDIDATE_ARRAYS = ("item_num", "item_cat", "prior_num", "prior_cat")
REQUEST_ARRAYS = ("user_num", "user_cat", "context_num", "context_cat")


@dataclass(frozen=True)
class EncodedSet:
    """The arrays of one split, by the names of the module's docstring without their axis letters."""

    arrays: dict[str, np.ndarray]
    request_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.request_ids)

    @property
    def max_candidates(self) -> int:
        """C: candidates after padding."""
        return int(self.arrays["mask"].shape[1])


def save_encoded(
    folder: Path,
    encoded: Sequence[Encoded],
    *,
    shown: Sequence[np.ndarray],
    feedback: Sequence[np.ndarray],
    request_ids: Sequence[str],
    timestamps: Sequence[int],
) -> None:
    """Pad and write; `shown` int64 (T,), `feedback` float32 (O, T) with NaN where tracking was lost, one a request."""
    R, C = len(encoded), max(len(e["prior_rank_C"]) for e in encoded)
    T, O = max(len(s) for s in shown), feedback[0].shape[0]
    arrays: dict[str, np.ndarray] = {
        "mask": np.zeros((R, C), bool),
        "prior_rank": np.full((R, C), C, np.int64),
        "shown": np.full((R, T), -1, np.int64),
        "feedback": np.zeros((R, O, T), np.float32),
        "carries": np.zeros((R, T), bool),
        "timestamp": np.asarray(timestamps, np.int64),
    }
    for name in CANDIDATE_ARRAYS:
        first = encoded[0][f"{name}_CF"]
        arrays[name] = np.zeros((R, C, first.shape[1]), first.dtype)
    for name in REQUEST_ARRAYS:
        arrays[name] = np.stack([e[f"{name}_F"] for e in encoded])
    for r, e in enumerate(encoded):
        n, t = len(e["prior_rank_C"]), len(shown[r])
        arrays["mask"][r, :n] = True
        arrays["prior_rank"][r, :n] = e["prior_rank_C"]
        for name in CANDIDATE_ARRAYS:
            arrays[name][r, :n] = e[f"{name}_CF"]
        arrays["shown"][r, :t] = shown[r]
        arrays["feedback"][r, :, :t] = np.nan_to_num(feedback[r])
        arrays["carries"][r, :t] = ~np.isnan(feedback[r]).any(axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    write_json(folder / "request_ids.json", list(request_ids))


def load_encoded(folder: Path) -> EncodedSet:
    """Open a split, memory-mapped."""
    arrays = {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in sorted(folder.glob("*.npy"))}
    return EncodedSet(arrays, tuple(json.loads((folder / "request_ids.json").read_text())))

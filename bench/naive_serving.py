"""The common way to serve such a model, built from Feast's and Ray Serve's own documentation, for `degre bench serving`.

Default Ray Serve with an ingress and a model deployment; `get_online_features` with the user joined to each item row; the
PyTorch model run eagerly. Not part of the product: it is what the product is compared with.

    python bench/naive_serving.py --bundle B --dataset D --registry R --redis redis://… --port 8001

Runs until standard input ends; says `ready` once it answers.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle


class Candidate(BaseModel):
    id: int
    scores: dict[str, float] = {}


class RerankRequest(BaseModel):
    user_id: int
    candidates: list[Candidate]
    context: dict[str, Any] = {}
    length: int = 10


app = FastAPI()


@serve.deployment
class Model:
    """The generator in eager PyTorch, behind the product's own encoder."""

    def __init__(self, bundle: str) -> None:
        from degre_prod.bundle import load_bundle
        from degre_prod.training.modules import load_generator

        self.encoder = load_bundle(Path(bundle)).encoder
        self.generator = load_generator(Path(bundle)).eval()

    def __call__(self, request: dict[str, Any], features: dict[str, list[Any]]) -> list[int]:
        import time

        import numpy as np
        import torch

        from degre_prod.requests import FeatureColumns, Request

        schema = self.encoder.schema
        ids = [c["id"] for c in request["candidates"]]

        def columns(role: str, rows: int) -> FeatureColumns:
            values: dict[str, Any] = {}
            for f in getattr(schema, role).features:
                column = features[f"{role}_features__{f.name}"][:rows]
                if f.kind == "numeric":
                    column = np.array([np.nan if v is None else v for v in column], np.float32)
                elif f.kind == "vector":
                    column = np.array([[np.nan] * f.size if v is None else v for v in column], np.float32)
                values[f.name] = column
            return FeatureColumns(values, rows)

        scores = {name: [c["scores"].get(name) for c in request["candidates"]] for name in schema.scores}
        asked = Request("naive", request["user_id"], time.time_ns() // 1000, ids, request["context"], scores)
        encoded = self.encoder.encode(asked, columns("user", 1), columns("item", len(ids)))
        batch = {name.rsplit("_", 1)[0]: torch.from_numpy(array)[None] for name, array in encoded.items()}
        batch["mask"] = torch.ones(1, len(ids), dtype=torch.bool)
        with torch.inference_mode():
            order, _ = self.generator.decode(batch, request["length"])
        return [ids[i] for i in order[0].tolist()]


@serve.deployment
@serve.ingress(app)
class Ingress:
    """Parses the request, reads the features, asks the model."""

    def __init__(self, model: DeploymentHandle, dataset: str, registry: str, redis: str) -> None:
        from orchestration.features.store import open_store

        self.model = model
        self.store = open_store(Path(dataset), Path(registry), redis)
        self.service = self.store.get_feature_service("rerank_v1")

    @app.post("/v1/rerank")
    async def rerank(self, request: RerankRequest) -> dict[str, Any]:
        rows = [{"user_id": request.user_id, "item_id": c.id} for c in request.candidates]
        features = self.store.get_online_features(
            features=self.service, entity_rows=rows, full_feature_names=True
        ).to_dict()
        items = await self.model.remote(request.model_dump(), features)
        return {"items": items, "source": "generator"}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("bundle", "dataset", "registry", "redis"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    from degre_prod.config import RayConfig
    from serving.cluster import ray_cluster

    with ray_cluster(RayConfig()):
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        model = Model.bind(options.bundle)
        serve.run(Ingress.bind(model, options.dataset, options.registry, options.redis), name="naive")
        print("ready", flush=True)
        sys.stdin.read()
        serve.shutdown()


if __name__ == "__main__":
    main()

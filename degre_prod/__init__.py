"""DeGRe: dense-supervised generative reranking, the library (no HTTP, no Redis, no Ray Serve)."""

__version__ = "0.1.0"

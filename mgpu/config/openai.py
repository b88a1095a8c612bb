"""OpenAI's routes: on these the ``model`` of a request says whose it is."""

from __future__ import annotations

from mgpu.config.model import ConsumerConfig

IMAGES = "/v1/images/generations"
PATHS = (
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions",
    "/v1/classify",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/edits",
    IMAGES,
    "/v1/images/variations",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
)
"""OpenAI's own, and those that servers of its kind have besides: all name a ``model``."""


def serves(consumer: ConsumerConfig, path: str) -> bool:
    """Whether the configuration says that it has this path of OpenAI's, or is made to."""
    return path in consumer.paths or (path == IMAGES and bool(consumer.workflows))

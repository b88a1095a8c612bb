"""Every service that there is a stand-in for."""

from __future__ import annotations

from tests.support.services.base import Service
from tests.support.services.images import (
    Automatic1111,
    ComfyUi,
    Forge,
    InvokeAi,
    SdNext,
    SwarmUi,
)
from tests.support.services.language import (
    KoboldCpp,
    Lemonade,
    LlamaRouter,
    LlamaServer,
    LlamaSwap,
    LmStudio,
    LocalAi,
    Ollama,
    SgLang,
    TabbyApi,
    TextGenerationWebUi,
    Vllm,
)
from tests.support.services.serving import TorchServe, Triton
from tests.support.services.speech import ChatterboxServer, Kokoro, Speaches

SERVICES: tuple[type[Service], ...] = (
    Automatic1111,
    ChatterboxServer,
    ComfyUi,
    Forge,
    InvokeAi,
    KoboldCpp,
    Kokoro,
    Lemonade,
    LlamaRouter,
    LlamaServer,
    LlamaSwap,
    LmStudio,
    LocalAi,
    Ollama,
    SdNext,
    SgLang,
    Speaches,
    SwarmUi,
    TabbyApi,
    TextGenerationWebUi,
    TorchServe,
    Triton,
    Vllm,
)

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
    LlamaRouter,
    LlamaServer,
    Ollama,
    SgLang,
    TabbyApi,
    TextGenerationWebUi,
    Vllm,
)
from tests.support.services.managers import (
    DockerModelRunner,
    Lemonade,
    LlamaSwap,
    LmStudio,
    LocalAi,
    Xinference,
)
from tests.support.services.plain import (
    AllTalk,
    ChatterboxApi,
    Frigate,
    ImmichMl,
    Infinity,
    LlamaCppPython,
    OpenedAiSpeech,
    SdServer,
    Tei,
    Tgi,
    WhisperAsr,
    WhisperCpp,
    XttsApi,
)
from tests.support.services.serving import TorchServe, Triton
from tests.support.services.speech import ChatterboxServer, Kokoro, Speaches

SERVICES: tuple[type[Service], ...] = (
    AllTalk,
    Automatic1111,
    ChatterboxApi,
    ChatterboxServer,
    ComfyUi,
    DockerModelRunner,
    Forge,
    Frigate,
    ImmichMl,
    Infinity,
    InvokeAi,
    KoboldCpp,
    Kokoro,
    Lemonade,
    LlamaCppPython,
    LlamaRouter,
    LlamaServer,
    LlamaSwap,
    LmStudio,
    LocalAi,
    Ollama,
    OpenedAiSpeech,
    SdNext,
    SdServer,
    SgLang,
    Speaches,
    SwarmUi,
    TabbyApi,
    Tei,
    TextGenerationWebUi,
    Tgi,
    TorchServe,
    Triton,
    Vllm,
    WhisperAsr,
    WhisperCpp,
    Xinference,
    XttsApi,
)

"""Where real services are, if they are installed; what needs them is skipped elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.systemd import CHECKOUT

PYTHON = Path(os.environ.get("MGPU_TEST_SERVICES", CHECKOUT / ".venv-services")) / "bin/python"
"""Of the environment that ``scripts/test-services`` makes."""
LLAMA_SERVER = Path(os.environ.get("MGPU_LLAMA_SERVER", "/nonexistent"))
LLAMA_SWAP = Path(os.environ.get("MGPU_LLAMA_SWAP", "/nonexistent"))
WHISPER_SERVER = Path(os.environ.get("MGPU_WHISPER_SERVER", "/nonexistent"))
OLLAMA = Path(os.environ.get("MGPU_OLLAMA", "/nonexistent"))
KOBOLDCPP = Path(os.environ.get("MGPU_KOBOLDCPP", "/nonexistent"))
INFINITY = Path(os.environ.get("MGPU_INFINITY", "/nonexistent"))
INVOKEAI = Path(os.environ.get("MGPU_INVOKEAI", "/nonexistent"))
SPEACHES = Path(os.environ.get("MGPU_SPEACHES", "/nonexistent"))
"""The uvicorn of its environment, ``.venv`` in its checkout."""
OPEN_WEBUI = Path(os.environ.get("MGPU_OPEN_WEBUI", "/nonexistent"))
VLLM = Path(os.environ.get("MGPU_VLLM", "/nonexistent"))
"""The Python that has it."""

needs_python = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"there is no {PYTHON}: scripts/test-services makes it"
)
needs_llama_server = pytest.mark.skipif(
    not LLAMA_SERVER.is_file(), reason="MGPU_LLAMA_SERVER names no llama-server of llama.cpp's"
)
needs_llama_swap = pytest.mark.skipif(
    not LLAMA_SWAP.is_file(), reason="MGPU_LLAMA_SWAP names no llama-swap"
)
needs_whisper_server = pytest.mark.skipif(
    not WHISPER_SERVER.is_file(), reason="MGPU_WHISPER_SERVER names no server of whisper.cpp's"
)
needs_ollama = pytest.mark.skipif(not OLLAMA.is_file(), reason="MGPU_OLLAMA names no ollama")
needs_koboldcpp = pytest.mark.skipif(
    not KOBOLDCPP.is_file(), reason="MGPU_KOBOLDCPP names no koboldcpp"
)
needs_infinity = pytest.mark.skipif(
    not INFINITY.is_file(), reason="MGPU_INFINITY names no infinity_emb"
)
needs_invokeai = pytest.mark.skipif(
    not INVOKEAI.is_file(), reason="MGPU_INVOKEAI names no invokeai-web"
)
needs_speaches = pytest.mark.skipif(
    not SPEACHES.is_file(), reason="MGPU_SPEACHES names no uvicorn of speaches's"
)
needs_open_webui = pytest.mark.skipif(
    not OPEN_WEBUI.is_file(), reason="MGPU_OPEN_WEBUI names no open-webui"
)
needs_vllm = pytest.mark.skipif(not VLLM.is_file(), reason="MGPU_VLLM names no Python with vLLM")

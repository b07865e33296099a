"""`workbench serve` beside `generate` of transformers called directly, and under many clients.

One run, one model, both in turns on the same machine: seconds to the first token and tokens per
second of a single reply, asked over a plain socket, since what a client library takes is not the
server's; then how soon the device is free after a client has hung up; then as many clients at once
as are asked for, with httpx. Without `--model`, random weights in the shapes of `--shape`:

    python benchmarks/serving.py [--shape demo | llama_7b] [--model FOLDER] [--clients 100] [--json]
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

# As the server has it, read when torch loads OpenMP: threads that spin while they wait would take
# each other's cores, and the slower side would be the one that others disturb.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import httpx
import torch
from machine import describe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from workbench.jobs.inference_process import InferenceProcess, ServerOptions

DEMO = Path(__file__).parents[1] / "configs/demo/model"
SHAPES = {
    "demo": None,
    "llama_7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def write_model(shape: str, folder: Path, device: str) -> Path:
    """Write a model folder with random weights; give it."""
    torch.manual_seed(0)
    folder.mkdir()
    config = SHAPES[shape] or LlamaConfig.from_pretrained(DEMO)
    # Nothing ends a reply early: every one has the tokens that were asked for.
    config.eos_token_id = None
    with torch.device(device):
        model = LlamaForCausalLM(config)
    if shape != "demo":
        model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    if shape == "demo":
        for path in DEMO.iterdir():
            if not (folder / path.name).exists() and path.name != "generation_config.json":
                (folder / path.name).write_bytes(path.read_bytes())
        return folder
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["a few words"], trainer)
    backend.add_tokens([f"<{number}>" for number in range(backend.get_vocab_size(), 32000)])
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


class Direct:
    """`generate` called directly."""

    def __init__(self, folder: Path, device: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
        self._model.generation_config.eos_token_id = None
        self._device = device

    def seconds(self, prompt: list[int], num_tokens: int) -> float:
        """Make one reply; give how long it took."""
        ids = torch.tensor([prompt], device=self._device)
        began = time.perf_counter()
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        made.tolist()
        assert made.shape[1] == len(prompt) + num_tokens
        return time.perf_counter() - began


class Served:
    """The server, asked over its Unix socket."""

    def __init__(self, server: InferenceProcess) -> None:
        self._socket = server.socket
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        transport = httpx.AsyncHTTPTransport(
            uds=str(server.socket), limits=httpx.Limits(max_connections=None)
        )
        self.http = httpx.AsyncClient(transport=transport, base_url="http://x", timeout=600)

    async def seconds(self, prompt: list[int], num_tokens: int, *, streams: bool) -> float:
        """Ask for one reply; give how long it took until all of it was here."""
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._socket)
        reader, writer = self._streams
        body = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "stream": streams}
        if streams:
            body["stream_options"] = {"include_usage": True}
        began = time.perf_counter()
        content = json.dumps(body).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(content), content)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if streams:
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            answer = await reader.readexactly(int(length))
        taken = time.perf_counter() - began
        assert head.startswith(b"http/1.1 200"), answer
        assert b'"completion_tokens":%d' % num_tokens in answer.replace(b" ", b""), answer[-500:]
        return taken

    async def client(self, number: int, prompt: list[int], num_tokens: int) -> dict[str, Any]:
        """Be one of many: stream a reply; say when it began and whether all went well."""
        body = {"prompt": prompt, "max_tokens": num_tokens, "seed": number, "stream": True}
        began, first, last = time.perf_counter(), None, ""
        try:
            async with self.http.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and first is None:
                        first = time.perf_counter() - began
                    last = line or last
        except httpx.HTTPError as error:
            return {"is_well": False, "why": repr(error)}
        return {"is_well": last == "data: [DONE]", "first": first, "why": last[:200]}

    async def seconds_to_free(self, prompt: list[int]) -> float:
        """Hang up in the middle of a long reply; give how long the server goes on."""
        body = {"prompt": prompt, "max_tokens": 100_000, "temperature": 0, "stream": True}
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    break
        began = time.perf_counter()
        while (await self.http.get("/health")).json()["busy"]:
            pass
        return time.perf_counter() - began


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; give the figures."""
    device = options.device
    vocabulary = json.loads((folder / "config.json").read_bytes())["vocab_size"]
    draw = torch.Generator().manual_seed(1)

    def prompt_of(length: int) -> list[int]:
        return [int(n) for n in torch.randint(10, vocabulary, (length,), generator=draw)]

    server = await InferenceProcess.spawn(
        ServerOptions(folder, device=device, parallel=options.parallel), inherit_stderr=False
    )
    try:
        async with aclosing(server.updates()) as updates:
            async for _ in updates:
                pass
        direct, served = Direct(folder, device), Served(server)
        prompt = prompt_of(options.prompt)
        for length in (1, options.tokens):
            direct.seconds(prompt, length)
            await served.seconds(prompt, length, streams=True)
        first: dict[str, list[float]] = {"direct": [], "served": []}
        whole: dict[str, list[float]] = {"direct": [], "served": []}
        for _ in range(6 * options.rounds):
            first["direct"].append(direct.seconds(prompt, 1))
            first["served"].append(await served.seconds(prompt, 1, streams=False))
        for _ in range(options.rounds):
            whole["direct"].append(direct.seconds(prompt, options.tokens))
            whole["served"].append(await served.seconds(prompt, options.tokens, streams=True))
        free = [await served.seconds_to_free(prompt) for _ in range(options.rounds)]
        prompts = [
            prompt_of(options.prompt // 2 + n % options.prompt) for n in range(options.clients)
        ]
        began = time.perf_counter()
        clients = await asyncio.gather(
            *(served.client(n, prompt, options.tokens) for n, prompt in enumerate(prompts))
        )
        taken = time.perf_counter() - began
        await served.http.aclose()
    finally:
        await server.stop()
    failed = [client["why"] for client in clients if not client["is_well"]]
    began_at = sorted(client["first"] for client in clients if client.get("first"))
    speeds = {name: options.tokens / statistics.median(times) for name, times in whole.items()}
    return {
        "model": folder.name,
        "device": device,
        "threads": torch.get_num_threads(),
        "prompt_tokens": options.prompt,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "first_token_ms": {n: round(statistics.median(t) * 1e3, 2) for n, t in first.items()},
        "first_token_quickest_ms": {n: round(min(t) * 1e3, 2) for n, t in first.items()},
        "tokens_per_second": {n: round(speed, 1) for n, speed in speeds.items()},
        "most_tokens_per_second": {
            n: round(options.tokens / min(times), 1) for n, times in whole.items()
        },
        "free_after_hanging_up_ms": round(max(free) * 1e3, 1),
        "clients": options.clients,
        "clients_failed": len(failed),
        "why": failed[:3],
        "clients_seconds": round(taken, 2),
        "clients_tokens_per_second": round(options.clients * options.tokens / taken, 1),
        "clients_first_token_seconds": {
            "median": round(statistics.median(began_at), 2) if began_at else None,
            "last": round(began_at[-1], 2) if began_at else None,
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--model", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a reply")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="wb-") as scratch:
        os.environ.setdefault("XDG_RUNTIME_DIR", scratch)
        folder = options.model or write_model(
            options.shape, Path(scratch) / options.shape, options.device
        )
        found = asyncio.run(measure(options, folder))
    found["load"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    found["machine"] = describe(torch.device(options.device))
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()

"""A naive HTTP server with the part of vLLM 0.32's protocol that rollouts use: one forward pass a token, no cache.

It loads a folder's weights when it is told to, and names them as it is told, as vLLM does. `ruin` makes it misbehave.
"""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM

from elocute.rollout import Sampling
from elocute.rollout.sampler import distribution


class StandIn:
    """asked: the bodies of the requests for tokens. loads: the folders whose weights it was told to load."""

    def __init__(self, folder, settings):
        self.settings = {"logprobs_mode": "processed_logprobs", "max_model_len": 512} | settings
        self.asked, self.loads = [], []
        self.start(folder)
        self.lock = threading.Lock()
        self.ruin = lambda path, body: None

    def start(self, folder) -> None:
        """As it starts: with the weights of its own folder."""
        self.model, self.version = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), "default"

    def reply(self, path: str, body: dict):
        with self.lock:
            if (said := self.ruin(path, body)) is not None:
                return said
            if path == "/collective_rpc":
                self.loads.append(body["kwargs"]["weights_path"])
                self.model = AutoModelForCausalLM.from_pretrained(self.loads[-1], dtype=torch.float32)
            if path == "/update_weight_version":
                self.version = body["new_version"]
            if path == "/inference/v1/generate":
                self.asked.append(body)
                return 200, {"choices": [self.choice(body["token_ids"], **body["sampling_params"])]}
            said = {"/weight_info": {"weight_version": self.version}, "/reset_prefix_cache": {"success": True}}
            said["/server_info"] = {"vllm_config": {"model_config": self.settings}}
            return 200, said.get(path, {})

    @torch.no_grad()
    def choice(self, ids, *, max_tokens, temperature, top_k, top_p, seed, stop_token_ids, **_):
        generator, drawn = torch.Generator().manual_seed(seed), []
        while len(drawn) < max_tokens and not (drawn and drawn[-1][0] in stop_token_ids):
            logits = self.model(torch.tensor([[*ids, *(token for token, _ in drawn)]])).logits[:, -1]
            [logp], _ = distribution(logits, Sampling(1, temperature, top_k, top_p))
            token = int(torch.multinomial(logp.exp(), 1, generator=generator))
            drawn.append((token, float(logp[token])))
        return {
            "token_ids": [token for token, _ in drawn],
            "finish_reason": "length" if len(drawn) == max_tokens else "stop",
            "logprobs": {"content": [{"token_id": token, "logprob": value} for token, value in drawn]},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(drawn)}],
        }


@contextmanager
def standing_in(folder, **settings):
    """A stand-in on loopback that has the weights of `folder`; `url` says where."""
    server = StandIn(folder, settings)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.answer({})

        def do_POST(self):  # noqa: N802
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body):
            code, said = server.reply(self.path.partition("?")[0], body)
            data = json.dumps(said).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has left, as it should when told to
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()

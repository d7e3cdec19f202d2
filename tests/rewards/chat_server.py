"""A real HTTP server on loopback that speaks the chat-completions protocol, well or badly."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def verdict(score) -> str:
    return f"<justification>because</justification><score>{score}</score>"


class Server:
    """`behave(self, handler, body, n)` answers request n (from 0); it may call `say`, `fail` or do worse."""

    def __init__(self, behave: Callable):
        self.behave = behave
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.keys: list[str] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            n = len(self.bodies)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.keys.append(handler.headers["Authorization"])
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.behave(self, handler, body, n)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has left, as it should after its time-out
        finally:
            with self._lock:
                self.now -= 1

    @staticmethod
    def say(handler, text, **more) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        Server.send(handler, 200, json.dumps(body | more))

    @staticmethod
    def fail(handler, code: int, message: str = "no", **headers) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        Server.send(handler, code, json.dumps({"error": {"message": message}}), headers)

    @staticmethod
    def send(handler, code: int, body: str, headers=None, kind: str = "application/json") -> None:
        data = body.encode()
        handler.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of the default, 5, a burst of requests would lose some for seconds


@contextmanager
def serving(behave: Callable):
    server = Server(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            server.serve(self)

        def log_message(self, *args):
            pass

    http = _Listener(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()

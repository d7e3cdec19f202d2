"""What a judge's latency costs: many answers at once against one by one, and a training that samples while it waits.

    python -m benchmarks.judge_latency                                          # some minutes
    python -m benchmarks.judge_latency --latency 0.2 --answers 8 --steps 4 --output seen.json

A server in a process of its own speaks the chat-completions protocol, waits `--latency` seconds and gives a score that
depends on the request alone. First `--answers` answers, a second of sound each, are judged by elocute's judge with the
recipe's defaults, and by the same requests one after the other through openai's client, as the released WavAlign code
does. Then the starter model is trained by that judge, plain and with `rollout.off_policy_steps=1`, each in
a fresh process. Hidden is the share of the judge's seconds in which the loop did not wait for it; the first step, which
loads what later ones find, and the last one, beside which nothing is left to sample, are not counted.
Writes benchmarks/results/judge_latency.json and the table in docs/performance.md.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from benchmarks.tables import provenance, write_table
from elocute.data.types import Answer, Example, Message, Utterance
from elocute.recipe.rewards import RewardSpec
from elocute.rewards.build import build_reward
from elocute.rewards.judge import JudgeReward, parse_verdict
from elocute.rewards.outcome import Scored

RESULT = Path("benchmarks/results/judge_latency.json")
PAGE = Path("docs/performance.md")
RECIPE = "recipes/starter/wavalign.yaml"
JUDGE = {"kind": "judge", "name": "judge", "rubric": "semantic"}
LOOPS = {"plain": 0, "one step ahead": 1}
RATE = 16_000


class Slow(BaseHTTPRequestHandler):
    """Every request waits alone, whatever else is asked."""

    def __init__(self, *args, latency: float):
        self.latency = latency
        super().__init__(*args)

    def do_POST(self) -> None:  # noqa: N802
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.latency)
        score = 1 + hashlib.sha256(asked).digest()[0] % 5
        message = {"role": "assistant", "content": f"<justification>so</justification><score>{score}</score>"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "slow", "choices": [choice]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256


def serve(latency: float) -> None:
    """Until whoever started this process ends it; the first line says where."""
    server = Server(("127.0.0.1", 0), partial(Slow, latency=latency))
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


@contextmanager
def judging(latency: float) -> Iterator[None]:
    """The environment says where the judge is."""
    command = [sys.executable, "-m", "benchmarks.judge_latency", "--serve", "--latency", str(latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    kept = dict(os.environ)
    try:
        for name in [name for name in os.environ if name.startswith(("WAVALIGN_REWARD_", "OPENAI_"))]:
            del os.environ[name]
        os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_MODEL": "slow"}
        os.environ["OPENAI_BASE_URL"] = server.stdout.readline().strip()
        yield
    finally:
        os.environ.clear()
        os.environ |= kept
        server.terminate()
        server.wait()


def answers_of(count: int, seed: int = 0) -> list[Answer]:
    """Questions in words and a second of noise for an answer, all different."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        example = Example(id=f"q{number}", messages=(Message("user", f"what is {number} plus one"),))
        waveform = (0.1 * draw.standard_normal(RATE)).astype(np.float32)
        made.append(Answer(example, Utterance(f"it is {number + 1}", waveform, RATE)))
    return made


def ours(judge: JudgeReward, answers: list[Answer]) -> list[float]:
    return [outcome.value for outcome in judge(answers) if isinstance(outcome, Scored)]


def serial(judge: JudgeReward, answers: list[Answer]) -> list[float]:
    """The same requests, one after the other."""
    from openai import OpenAI

    client = OpenAI(max_retries=0)
    replies = [client.chat.completions.create(**judge.request(answer)) for answer in answers]
    return [parse_verdict(reply.choices[0].message.content).value for reply in replies]


def compare_judges(count: int, rounds: int) -> dict:
    judge, found, scores = build_reward(TypeAdapter(RewardSpec).validate_python(JUDGE)), {}, set()
    answers = answers_of(count)
    judge(answers[:1])  # imports
    for _ in range(rounds):
        for how in (ours, serial):
            began = time.perf_counter()
            values = how(judge, answers)
            found.setdefault(how.__name__, []).append(time.perf_counter() - began)
            scores.add(tuple(values))
            if len(values) != count:
                raise SystemExit(f"{how.__name__}: {len(values)} of {count} answers were scored")
            print(f"{how.__name__}: {found[how.__name__][-1]:.2f} s", file=sys.stderr)
    if len(scores) > 1:
        raise SystemExit("the scores differ")
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {"answers": count, "n": rounds, "concurrency": judge.endpoint.concurrency} | {
        "ours_s": middle["ours"],
        "serial_s": middle["serial"],
        "ratio": middle["serial"] / middle["ours"],
    }


def train(ahead: int, steps: int, overrides: list[str]) -> dict:
    """Means over the counted steps of one training."""
    with tempfile.TemporaryDirectory() as folder:
        rewards = f"rewards=[{{{', '.join(f'{key}: {value}' for key, value in JUDGE.items())}}}]"
        own = [f"run_dir={folder}/run", f"steps={steps}", f"checkpoint.every={steps}", "data.eval=null", "report=false"]
        command = [sys.executable, "-m", "elocute.cli", "train", RECIPE, rewards, *own, *overrides]
        subprocess.run([*command, f"rollout.off_policy_steps={ahead}"], check=True, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()][1:-1]
    parts = {
        name: [line.get(f"seconds/{name}") for line in lines] for name in ("rollout", "decode", "reward", "update")
    }
    parts |= {name: [line.get(f"seconds/{name}") for line in lines] for name in ("wait", "total")}
    means = {f"{name}_s": statistics.mean(of) for name, of in parts.items() if None not in of}
    waited = sum(line.get("seconds/wait", line["seconds/reward"]) for line in lines)
    return means | {"steps": len(lines), "hidden": 1 - waited / sum(line["seconds/reward"] for line in lines)}


def markdown(result: dict) -> str:
    """Both comparisons as tables."""
    judged, loops = result["judge"], result["training"]
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}; a judge that takes {result['latency']:g} s:",
        "",
        "| answers | elocute's judge, s | serial calls, s | ratio |",
        "|---|---|---|---|",
        f"| {judged['answers']} | {judged['ours_s']:.2f} | {judged['serial_s']:.2f} | {judged['ratio']:.1f} |",
        "",
        "| loop | a step, s | rollout | decode | update | judge | waited for it | hidden |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of in loops.items():
        cells = [of[f"{part}_s"] for part in ("total", "rollout", "decode", "update", "reward")]
        cells.append(of.get("wait_s", of["reward_s"]))
        lines.append(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {100 * of['hidden']:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the recipe that is trained, as `elocute train` takes them")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds the judge takes for an answer")
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.latency)
    with judging(args.latency):
        judged = compare_judges(args.answers, args.rounds)
        loops = {name: train(ahead, args.steps, args.overrides) for name, ahead in LOOPS.items()}
    print(f"{judged['answers']} answers: {judged['ratio']:.1f} times as fast as serial calls")
    for name, of in loops.items():
        print(f"{name}: {of['total_s']:.2f} s a step, {100 * of['hidden']:.0f} % of the judge's time hidden")
    result = provenance("benchmarks.judge_latency") | {"latency": args.latency, "judge": judged, "training": loops}
    result["versions"] |= {"openai": version("openai")}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    if args.output == RESULT:
        write_table("judge_latency", markdown(result), PAGE)


if __name__ == "__main__":
    main()

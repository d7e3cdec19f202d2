"""TRL's GRPOTrainer at the work of benchmarks/rl_step.py; run by it, in TRL's own environment, which has no elocute."""

import json
import sys
import tempfile
import time
from itertools import pairwise

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import plain
from benchmarks.plain import Work


class Clock(TrainerCallback):
    """When each step ended; the peak of memory is that after the first."""

    def __init__(self):
        self.ended: list[float] = []

    def on_step_end(self, args, state, control, **_):
        plain.synchronise()
        self.ended.append(time.perf_counter())
        if len(self.ended) == 1:
            plain.start_peak()


def steps(work: Work, *, checkpointing: bool) -> dict:
    cuda = plain.device() == "cuda"
    torch.set_num_threads(work.threads)
    lengths: list[int] = []

    def reward(completions, completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return plain.reward(completions)

    adapter = None
    if rank := plain.LORA.get(work.shape):
        from peft import LoraConfig

        adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=plain.TARGETS, lora_dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            max_steps=work.steps + 1,
            per_device_train_batch_size=work.micro,
            gradient_accumulation_steps=work.prompts * work.group // work.micro,
            num_generations=work.group,
            max_completion_length=work.new,
            learning_rate=1e-6,
            gradient_checkpointing=checkpointing,
            bf16=cuda,
            use_cpu=not cuda,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        network = plain.network(work.shape, work.layers, torch.bfloat16 if cuda and adapter else torch.float32)
        network.generation_config.eos_token_id = None  # the tokenizer's alone ends an answer: it is never said
        clock = Clock()
        trainer = GRPOTrainer(
            network,
            reward,
            config,
            Dataset.from_dict({"prompt": plain.prompts(work.prompts)}),
            processing_class=plain.tokenizer(),
            callbacks=[clock],
            peft_config=adapter,
        )
        trainer.train()
    seconds = [after - before for before, after in pairwise(clock.ended)]
    return {"seconds": seconds, "peak_mib": plain.peak_mib(), "tokens": sum(lengths) // len(clock.ended)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(steps(Work(**given["work"]), checkpointing=given["checkpointing"])))

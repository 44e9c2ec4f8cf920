"""Drives OpenVINO GenAI's continuous batching pipeline in this process. Run by the OpenVINO environment's Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import openvino
import openvino_genai
import protocol

CACHE_GIB = 2


def pipeline_of(model: str, threads: int, sequences: int) -> openvino_genai.ContinuousBatchingPipeline:
    """With prefix caching off, and the token budget a step that Sixfold and llama.cpp have."""
    schedule = openvino_genai.SchedulerConfig()
    schedule.cache_size = CACHE_GIB
    schedule.enable_prefix_caching = False
    schedule.dynamic_split_fuse = True
    schedule.max_num_seqs = sequences
    schedule.max_num_batched_tokens = 512
    properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return openvino_genai.ContinuousBatchingPipeline(model, schedule, "CPU", properties)


def greedy(new_tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.min_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


class Scorer:
    """Perplexity from the model's own graph, which gives logits at every position; the pipeline keeps only the last."""

    def __init__(self, model: str, threads: int) -> None:
        compiled = openvino.Core().compile_model(
            f"{model}/openvino_model.xml", "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._request = compiled.create_infer_request()
        self._inputs = {name for port in compiled.inputs for name in port.names}

    def loss(self, window: list[int]) -> tuple[float, int]:
        ids = np.asarray([window], np.int64)
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.reset_state()
        outputs = self._request.infer({name: value for name, value in feeds.items() if name in self._inputs})
        half = len(window) // 2
        logits = next(iter(outputs.values()))[0, half:-1].astype(np.float64)
        peak = logits.max(axis=1, keepdims=True)
        norm = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=1))
        losses = norm - logits[np.arange(len(logits)), window[half + 1 :]]
        return float(losses.sum()), len(losses)


def main() -> None:
    out = protocol.take_stdout()
    options = protocol.options()
    pipeline = pipeline_of(options.model, options.threads, options.sequences)
    numbers = itertools.count()

    def generate(prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
        steps = protocol.Steps(len(prompts))
        config = greedy(new_tokens)
        handles = [
            pipeline.add_request(next(numbers), openvino.Tensor(np.asarray([prompt], np.int64)), config)
            for prompt in prompts
        ]
        counts = [0] * len(handles)
        while pipeline.has_non_finished_requests():
            pipeline.step()
            first = later = finished = 0
            for index, handle in enumerate(handles):
                if counts[index] == new_tokens or not handle.can_read():
                    continue
                before = counts[index]
                counts[index] += sum(len(output.generated_ids) for output in handle.read().values())
                first += before == 0
                later += counts[index] - before - (before == 0)
                finished += counts[index] == new_tokens
            steps.step(first, later, finished)
        return steps.result()

    def score(windows: list[list[int]]) -> dict[str, float]:
        scorer = Scorer(options.model, options.threads)
        losses = [scorer.loss(window) for window in windows]
        return {"loss": math.fsum(loss for loss, _ in losses), "tokens": sum(count for _, count in losses)}

    ready = {"engine": "openvino", "version": openvino_genai.__version__}
    protocol.answer_stdin(ready, generate, score, out)


if __name__ == "__main__":
    main()

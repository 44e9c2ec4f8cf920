"""Drives Sixfold in this process. Run by the Python that Sixfold is installed in."""

from __future__ import annotations

import protocol

from sixfold.config import EngineConfig
from sixfold.engine.llm import LLM
from sixfold.engine.loader import load_engine
from sixfold.evaluation.perplexity import NativeScorer
from sixfold.types import FinishedStats, SamplingParams, StepStats


class Listener:
    """Passes the engine's steps on to the command that is under way."""

    def __init__(self) -> None:
        self.steps: protocol.Steps | None = None
        self._finished = 0

    def on_request_finished(self, stats: FinishedStats, /) -> None:
        self._finished += 1

    def on_step(self, stats: StepStats, /) -> None:
        if self.steps is not None:
            self.steps.step(len(stats.first_token_latencies), len(stats.inter_token_latencies), self._finished)
        self._finished = 0


def main() -> None:
    out = protocol.take_stdout()
    options = protocol.options()
    listener = Listener()
    config = EngineConfig(
        model=options.model,
        threads=options.threads,
        isa=options.isa,
        max_num_seqs=options.sequences,
        max_model_len=options.context,
        kv_memory=2 << 30,
        kv_format="f16" if options.dtype == "auto" else options.dtype,
        prefix_cache=False,
    )
    loaded = load_engine(config, listener)
    executor = loaded.core.runner.executor
    llm = LLM.from_loaded(loaded)

    def generate(prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        listener.steps = steps = protocol.Steps(len(prompts))
        llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
        listener.steps = None
        return steps.result()

    def score(windows: list[list[int]]) -> dict[str, float]:
        import numpy as np

        scorer = NativeScorer(executor, config.max_num_batched_tokens)
        losses = [-scorer(np.asarray(window, np.int32)) for window in windows]
        return {"loss": float(sum(loss.sum() for loss in losses)), "tokens": sum(map(len, losses))}

    ready = {"engine": "sixfold", "isa": getattr(executor, "isa", None), "threads": getattr(executor, "threads", None)}
    protocol.answer_stdin(ready, generate, score, out)


if __name__ == "__main__":
    main()

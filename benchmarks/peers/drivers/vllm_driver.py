"""Drives vLLM's engine in this process. Run by the vLLM environment's Python (engines.py sets its environment)."""

from __future__ import annotations

import itertools
import math

import protocol
import torch
import vllm
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind


def main() -> None:
    out = protocol.take_stdout()
    options = protocol.options()
    if options.isa == "avx2":  # which of vLLM's libraries is loaded hangs on these two; torch reads its environment
        torch.cpu._is_avx512_supported = torch.cpu._is_avx512_bf16_supported = lambda: False
    arguments = EngineArgs(
        model=options.model,
        dtype=options.dtype,
        max_num_seqs=options.sequences,
        max_model_len=options.context,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,  # token ids in, token ids out
        disable_log_stats=True,
    )
    engine = LLMEngine.from_engine_args(arguments)
    names = (f"request-{number}" for number in itertools.count())

    def generate(prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            min_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        steps = protocol.Steps(len(prompts))
        begun: set[str] = set()
        for prompt in prompts:
            engine.add_request(next(names), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            first = later = finished = 0
            for output in engine.step():
                tokens = len(output.outputs[0].token_ids)
                if tokens and output.request_id not in begun:
                    begun.add(output.request_id)
                    first, tokens = first + 1, tokens - 1
                later += tokens
                finished += output.finished
            steps.step(first, later, finished)
        return steps.result()

    def score(windows: list[list[int]]) -> dict[str, float]:
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        losses: list[float] = []
        for window in windows:
            engine.add_request(next(names), {"prompt_token_ids": window}, params)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        scored = range(len(window) // 2 + 1, len(window))
                        losses += [-output.prompt_logprobs[i][window[i]].logprob for i in scored]
        return {"loss": math.fsum(losses), "tokens": len(losses)}

    protocol.answer_stdin({"engine": "vllm", "version": vllm.__version__}, generate, score, out)


if __name__ == "__main__":
    main()

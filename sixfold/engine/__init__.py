"""From requests to tokens: scheduling, KV pages, sampling, text; offline (LLM) and asynchronous."""

"""Writes a Hugging Face directory of the dequantised weights of a GGUF file. Runs in the vLLM environment.

transformers reads GGUF itself: it dequantises (in float32, so exactly), gives the tensors their Hugging Face names,
undoes the reordering of Q and K rows that llama.cpp's rope wants, takes one from Gemma's norms, and rebuilds the
tokenizer. What it makes is checked afterwards by perplexity, against Sixfold on the GGUF file.

Usage: export_hf.py FILE.gguf DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: Path, target: Path) -> None:
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # the weights are plain float32 now; without this, transformers refuses to save what came from a quantised file
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

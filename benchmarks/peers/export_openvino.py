"""Writes OpenVINO IR with compressed weights from a Hugging Face directory. Runs in the OpenVINO environment.

int4: asymmetric, groups of 64 (the largest power of two that divides every model's sizes here), all layers, embedding
and output in int8, as OpenVINO's own 4-bit models have them; data-free, because the source has been quantised already.
int8: asymmetric, one scale a row.

Usage: export_openvino.py HF_DIRECTORY TARGET (int4 | int8)
"""

from __future__ import annotations

import sys
from pathlib import Path

from openvino import save_model
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer

CONFIGS = {
    "int4": {"bits": 4, "sym": False, "group_size": 64, "ratio": 1.0},
    "int8": {"bits": 8, "sym": False},
}


def main(source: str, target: Path, form: str) -> None:
    config = OVWeightQuantizationConfig(**CONFIGS[form])
    model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, quantization_config=config)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(target)
    encode, decode = convert_tokenizer(tokenizer, with_detokenizer=True)
    save_model(encode, target / "openvino_tokenizer.xml")
    save_model(decode, target / "openvino_detokenizer.xml")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

"""Records what llama.cpp makes of some sentences, for test_tokenizer_gguf.py. Needs llama-cpp-python; not part of CI.

    python tests/engine/record_tokens.py MODEL.gguf tests/engine/goldens/NAME_tokens.json

``plain`` is without, ``special`` with control tokens parsed; neither has BOS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SENTENCES = [
    "The quick brown fox can't jump over 13 lazy dogs, can it?",
    "  two spaces, a\ttab,\n\nan empty line and    four spaces  ",
    "It's 2026-03-14 15:09:26.535; π ≈ 3.14159, ½ + ¼ = ¾, x² and Ⅷ.",
    "def mean(xs: list[float]) -> float:\n    return sum(xs) / len(xs)  # 100% typed\n",
    "Zażółć gęślą jaźń, naïve café, Straße, Ελλάδα, Привет, שלום, नमस्ते, สวัสดี",
    "人工智能的句子没有空格。日本語のテキスト、한국어 문장.",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 and combining e\u0301 a\u0308, zero\u200bwidth, nb\u00a0sp, \u3000wide",
    "<|im_start|>user\nhello<|im_end|>\n<start_of_turn>model\nhi<end_of_turn><eos><bos>",
    "<td>cell</td> <h1>Title</h1> <unused7> [multimodal] <0x41> ▁low ▁▁",
    "aaaaaaaaaaaaaaaaaaaaaaaaa ==== ---- ........ !!!!!!! ((((( ))))) \\\\\\",
    "\n\n\n\n\n\t\t\t   \r\n\r\n x\r",
    "SHOUTING camelCase snake_case kebab-case 1234567890 0x7fff 1e-9 v1.2.3",
    "Ünïcödé \U0001d518\U0001d52b ﬁ ligature, \ufeffBOM, \U000e0041 tag, \U00012345 cuneiform",
    "I'LL they'Ve we'RE 'quoted' don’t “curly” …",
]


def main(model: str, output: str) -> None:
    from llama_cpp import Llama

    vocabulary = Llama(model_path=model, vocab_only=True, verbose=False)
    rows = [
        {
            "text": text,
            "plain": vocabulary.tokenize(text.encode(), add_bos=False, special=False),
            "special": vocabulary.tokenize(text.encode(), add_bos=False, special=True),
        }
        for text in SENTENCES
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
    Path(output).write_text(f"[\n{lines}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])

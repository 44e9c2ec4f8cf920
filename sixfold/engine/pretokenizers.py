"""Which regular expressions cut text into words before byte-level BPE, by the name a GGUF file gives them.

Owns: the table of ``tokenizer.ggml.pre`` names. Must not know: vocabularies or files. The expressions are those of the
models' own ``tokenizer.json`` (where llama.cpp's differ, as for non-ASCII capitals in "tekken", the model's own win);
which name means which is fixed by llama.cpp's converter and ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from sixfold.errors import UnsupportedModelError


@dataclass(frozen=True)
class PreTokenizer:
    """Expressions applied one after the other; matches and what lies between them both become words."""

    patterns: tuple[str, ...]
    add_bos: bool = False  # when the file does not say
    ignore_merges: bool = False  # a word that is a token needs no merges
    nfc: bool = False  # text is composed first

    def build(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"|\s*[\r\n]+"
_SPACES = r"|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = _ENDINGS + _WORD + r"\p{N}{1,3}" + _MARKS + _LINES + _SPACES
_QWEN2 = _ENDINGS + _WORD + r"\p{N}" + _MARKS + _LINES + _SPACES
_QWEN35 = (
    _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _LINES + _SPACES
)  # fmt: skip
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED = rf"{_LEAD}{_UPPER}*{_LOWER}+%s|{_LEAD}{_UPPER}+{_LOWER}*%s|"
_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _LINES + _SPACES
_TEKKEN = _CASED % ("", "") + r"\p{N}" + _SLASHES
_GPT4O = _CASED % (_ENDINGS + "?", _ENDINGS + "?") + r"\p{N}{1,3}" + _SLASHES
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    + _LINES
    + _SPACES
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-\u038aΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffcℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN = PreTokenizer((_GPT2,))
_CAPITAL = PreTokenizer((_GPT4O,))
_BY_THREE = PreTokenizer((_LLAMA3,))
_COMPOSED = PreTokenizer((_QWEN2,), nfc=True)
_SINGLE = PreTokenizer((_QWEN2,))
_LLAMA = PreTokenizer((_LLAMA3,), add_bos=True, ignore_merges=True)
_V3 = PreTokenizer((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3))

_TABLE: dict[PreTokenizer, str] = {
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): "default",
    _PLAIN: "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat mellum a.x-4.0",
    _DIGITS: "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    _LLAMA: "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    _BY_THREE: "dbrx smaug-bpe glm4 chatglm-bpe",
    _COMPOSED: "qwen2 deepseek-r1-qwen",  # their tokenizer.json composes; llama.cpp does not
    PreTokenizer((_QWEN35,), nfc=True): "qwen35",
    _SINGLE: "stablelm2 megrez hunyuan grok-2 kormo f2llmv2 solar-open",
    _V3: "deepseek-v3 hunyuan-dense joyai-llm",
    PreTokenizer(
        ("[\r\n]", rf"\s?[{_CASED_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+")
    ): "deepseek-llm",
    PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")): "deepseek-coder",
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")): "falcon",
    PreTokenizer((_BLOOM,)): "bloom poro-chat gpt3-finnish",
    PreTokenizer((_BLOOM, r"\p{N}")): "viking",
    PreTokenizer((_TEKKEN,), add_bos=True, ignore_merges=True): "tekken",
    _CAPITAL: "gpt-4o llama4 kanana2 minimax-m2",
    PreTokenizer(
        (_ENDINGS + _WORD + r"\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _LINES + _SPACES,)
    ): "seed-coder",
    PreTokenizer(
        (r"'(?i:[sdmt]|ll|ve|re)" + _WORD + r"\p{N}" + _MARKS + r"|\s*[\r\n]" + _SPACES,)
    ): "bailingmoe bailingmoe2 llada-moe",
}  # fmt: skip
NAMES: dict[str, PreTokenizer] = {name: pre for pre, names in _TABLE.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer a GGUF file names. Raises :class:`UnsupportedModelError` for one we do not know exactly."""
    try:
        return NAMES[name]
    except KeyError:
        raise UnsupportedModelError(
            f"The pre-tokenizer {name!r} is not supported",
            cause="cutting text in another way than in training would change the tokens without a sign",
            remedy=f"Use a Hugging Face directory of the same model, or a file with one of: {', '.join(sorted(NAMES))}",
        ) from None

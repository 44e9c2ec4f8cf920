"""Which packed format a tensor type gets. All of them keep the values exactly: ``w = scale * q - minimum``.

Owns: the table, and the numbers that csrc/plan.hpp knows the formats by. Must not know: how bytes are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass

F32, F16, BF16, INT4, INT8, INT5, INT6 = range(7)  # Values in csrc/plan.hpp
ZERO_POINT, EXPLICIT_MINIMUM = range(2)  # Minimum in csrc/plan.hpp
HALF, BYTE = 2, 1  # bytes of a scale: a float16, or a byte times the float16 of 256 columns

_NAMES = ("f32", "f16", "bf16", "int4", "int8", "int5", "int6")
_BITS = {INT4: 4, INT5: 5, INT6: 6, INT8: 8}


@dataclass(frozen=True)
class Format:
    """``block`` columns share a scale of ``scale_bytes``; 0 for float values."""

    values: int
    block: int = 0
    scale_bytes: int = 0
    minimum: int = ZERO_POINT

    @property
    def quantised(self) -> bool:
        """Whether activations meet this matrix as int8."""
        return self.values in _BITS

    @property
    def bits(self) -> int:
        return _BITS[self.values]

    @property
    def zero(self) -> int:
        """The stored integer that means 0; int8 values are stored signed."""
        return 0 if self.minimum == EXPLICIT_MINIMUM or self.values == INT8 else 1 << (self.bits - 1)

    def __str__(self) -> str:
        name = _NAMES[self.values]
        if not self.quantised:
            return name
        scale = "f16" if self.scale_bytes == HALF else "i8*f16" if self.minimum == ZERO_POINT else "u8*f16"
        return f"{name}/{self.block} {scale}" + ("+min" if self.minimum == EXPLICIT_MINIMUM else "")


FORMATS = {
    "F32": Format(F32),
    "F16": Format(F16),
    "BF16": Format(BF16),
    "Q4_0": Format(INT4, 32, HALF),
    "Q4_1": Format(INT4, 32, HALF, EXPLICIT_MINIMUM),
    "Q5_0": Format(INT5, 32, HALF),
    "Q5_1": Format(INT5, 32, HALF, EXPLICIT_MINIMUM),
    "Q8_0": Format(INT8, 32, HALF),
    "IQ4_NL": Format(INT8, 32, HALF),
    "Q2_K": Format(INT4, 16, BYTE, EXPLICIT_MINIMUM),
    "Q3_K": Format(INT4, 16, BYTE),
    "Q4_K": Format(INT4, 32, BYTE, EXPLICIT_MINIMUM),
    "Q5_K": Format(INT5, 32, BYTE, EXPLICIT_MINIMUM),
    "Q6_K": Format(INT6, 16, BYTE),
}

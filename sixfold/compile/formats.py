"""Which packed format a tensor type gets. All of them keep the values exactly: ``w = scale * q - minimum``.

Owns: the table, and the numbers that csrc/plan.hpp knows the formats by. Must not know: how bytes are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass

F32, F16, BF16, INT4, INT8 = range(5)  # Values in csrc/plan.hpp
NO_MINIMUM, EXPLICIT_MINIMUM, ZERO_POINT_8 = range(3)  # Minimum in csrc/plan.hpp


@dataclass(frozen=True)
class Format:
    """``block`` columns share a scale of ``scale_bytes`` (2: float16, 4: float32); 0 for float values."""

    values: int
    block: int = 0
    scale_bytes: int = 0
    minimum: int = NO_MINIMUM

    @property
    def quantised(self) -> bool:
        """Whether activations meet this matrix as int8."""
        return self.values in (INT4, INT8)

    def __str__(self) -> str:
        name = ("f32", "f16", "bf16", "int4", "int8")[self.values]
        if not self.quantised:
            return name
        scale = "f16" if self.scale_bytes == 2 else "f32"
        return f"{name}/{self.block} {scale}" + ("", "+min", " zero 8")[self.minimum]


# A K-quant's block scale is a float16 times a 6-bit integer, which only a float32 holds exactly.
FORMATS = {
    "F32": Format(F32),
    "F16": Format(F16),
    "BF16": Format(BF16),
    "Q4_0": Format(INT4, 32, 2, ZERO_POINT_8),
    "Q4_1": Format(INT4, 32, 2, EXPLICIT_MINIMUM),
    "Q4_K": Format(INT4, 32, 4, EXPLICIT_MINIMUM),
    "Q5_0": Format(INT8, 32, 2),
    "Q5_1": Format(INT8, 32, 2, EXPLICIT_MINIMUM),
    "Q5_K": Format(INT8, 32, 4, EXPLICIT_MINIMUM),
    "Q8_0": Format(INT8, 32, 2),
    "IQ4_NL": Format(INT8, 32, 2),
    "Q6_K": Format(INT8, 16, 4),
    "Q3_K": Format(INT8, 16, 4),
    "Q2_K": Format(INT8, 16, 4, EXPLICIT_MINIMUM),
}

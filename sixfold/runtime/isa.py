"""Which instruction set the native kernels take on this machine.

Owns: the question. Must not know: plans. The answer comes from this build and this processor, not from a list of flags.
"""

from __future__ import annotations

import numpy as np

from sixfold import _native

SETS = ("avx512bf16", "avx512", "avx2")  # best first; what is none of these is scalar


def chosen() -> str:
    """What ``isa=auto`` stands for here."""
    one = np.ones(8, np.float32)
    for isa in SETS:
        try:
            _native.kernel_rms_norm(isa, one, one, 0.0, np.empty(8, np.float32))
        except ValueError:  # not in this build, or not in this processor
            continue
        return isa
    return "scalar"

import pytest

from sixfold.errors import ConfigError
from sixfold.runtime.kv_format import exact_bytes, head_bytes, layer_formats, page_bytes, scale_bytes


def test_one_format_for_all_layers() -> None:
    assert layer_formats("int8", 3) == ("int8",) * 3


def test_exceptions_for_layers() -> None:
    assert layer_formats("int8, 0=f16, 3-4=f16", 6) == ("f16", "int8", "int8", "f16", "f16", "int8")


@pytest.mark.parametrize("choice", ["", "int7", "int8,", "int8,6=f16", "int8,4-2=f16", "int8,0=q", "int8,-1=f16"])
def test_a_wrong_choice_says_what_is_right(choice: str) -> None:
    with pytest.raises(ConfigError, match="can not be used") as caught:
        layer_formats(choice, 6)
    assert "f16, int8 or int4" in str(caught.value.remedy)


def test_bytes() -> None:
    assert head_bytes("f16", 64) == 2 * 16 * 64 * 2
    assert head_bytes("int8", 64) == 2 * 16 * 64 + 2 * 16 * 2
    assert head_bytes("int4", 64) == 16 * 64 + 2 * 16 * 2
    assert scale_bytes("int8") == scale_bytes("int4") == 64
    sizes = {"layers": 3, "kv_heads": 2, "head_size": 64}
    assert page_bytes(sizes, "f16,1=int8") == 2 * (2 * 4096 + 2112)


def test_int4_layers_keep_the_newest_tokens_beside() -> None:
    sizes = {"layers": 3, "kv_heads": 2, "head_size": 64}
    assert exact_bytes(sizes, "int8,1=f16", sequences=9, step_tokens=512) == 0
    assert exact_bytes(sizes, "int4,1=f16", sequences=2, step_tokens=40) == 2 * 2 * 4096 * (2 * 6 + 3)

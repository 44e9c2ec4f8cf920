"""A model as it lies on disk: which architecture it says it is, its metadata, its tensors and its digest.

Owns: :func:`open_model`, which chooses the reader, and the naming of architectures. Must not know: which
architectures can be run (``models`` refuses those it does not have) or how formats are laid out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from sixfold.errors import ModelFileError
from sixfold.weights import gguf, safetensors
from sixfold.weights.mapped_file import MappedFile
from sixfold.weights.tensor import Tensor

# Hugging Face model types that are another architecture under a name of their own
ALIASES = {"mistral": "llama", "gemma3_text": "gemma3"}
# for a config.json without model_type
CLASSES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}


@dataclass(frozen=True, eq=False)
class ModelFile:
    """An open model. Use it in ``with``, or call :meth:`close`."""

    path: Path
    kind: str  # "gguf" or "safetensors"
    architecture: str  # the name of a file in sixfold/models, or whatever else the file says
    metadata: Mapping[str, Any] = field(repr=False)  # GGUF keys and values, or the parsed config.json
    tensors: Mapping[str, Tensor] = field(repr=False)  # names as in the file
    digest: str  # sha256 in hex over weights, configuration and tokenizer
    files: tuple[MappedFile, ...] = field(default=(), repr=False)

    def close(self) -> None:
        """Lets go of the tensors and unmaps the files; a tensor still held elsewhere keeps its file mapped."""
        if isinstance(self.tensors, dict):
            self.tensors.clear()
        for file in self.files:
            file.close()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_model(path: Path) -> ModelFile:
    """Opens a GGUF file, or a Hugging Face directory of safetensors.

    Reads metadata and checks where every tensor lies, but touches no weights except to hash them the first time.
    Raises :class:`ModelFileError` for what is missing, cut off, damaged or lies, and
    :class:`~sixfold.errors.UnsupportedModelError` for tensor types and shards that cannot be read.
    """
    path = Path(path)
    try:
        directory = path.is_dir()
    except OSError:  # no way to it; opening it says why
        directory = False
    return _open_directory(path) if directory else _open_gguf(path)


def _open_gguf(path: Path) -> ModelFile:
    file = MappedFile(path)
    metadata, tensors = gguf.read_gguf(file)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelFileError(
            f"{path} does not say what model it is", cause="general.architecture is missing or not a string",
            remedy="Convert the model again with a current llama.cpp converter",
        )  # fmt: skip
    return ModelFile(path, "gguf", architecture, metadata, tensors, file.digest(), (file,))


def _open_directory(path: Path) -> ModelFile:
    config = safetensors.read_config(path)
    architecture = _architecture(path, config)
    names, places = safetensors.weight_files(path)
    files = tuple(MappedFile(name) for name in names)
    tensors = safetensors.read_weights(list(files), places)
    return ModelFile(path, "safetensors", architecture, config, tensors, _directory_digest(path, files), files)


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    name = config.get("model_type")
    if not name:
        classes = config.get("architectures")
        first = classes[0] if isinstance(classes, list) and classes else None
        name = CLASSES.get(first, first) if isinstance(first, str) else None
    if not isinstance(name, str) or not name:
        raise ModelFileError(
            f"{path / 'config.json'} does not say what model it is", cause="model_type and architectures are missing",
            remedy="Download it again",
        )  # fmt: skip
    return ALIASES.get(name, name)


def _directory_digest(path: Path, weights: tuple[MappedFile, ...]) -> str:
    """The sha256 over name and sha256 of each file, in order of names."""
    digests = {file.path.name: file.digest() for file in weights}
    for name in safetensors.COMPANIONS:
        if (path / name).is_file() and (path / name).stat().st_size > 0:
            digests[name] = MappedFile(path / name).digest()
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()

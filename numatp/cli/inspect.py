"""`numatp inspect`: what is in a model, whether numatp computes it, by which kernels, or why not."""

import argparse
import json
import os
from math import prod
from pathlib import Path
from typing import Any

from numatp.errors import NumatpError
from numatp.files.folder import Folder
from numatp.files.gguf import GGUFFile, read_gguf
from numatp.files.models import resolve_model
from numatp.machine import isa


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a pulled model, path of a GGUF file, or a Hugging Face folder")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="what stdout gets (default text)")


def run(arguments: argparse.Namespace) -> int:
    found = describe(resolve_model(arguments.model))
    print(json.dumps(found) if arguments.output == "json" else "\n".join(lines_of(found)))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """All that the command says. UserError for a file that cannot be read."""
    source = Folder(path) if os.path.isdir(path) else read_gguf(path)
    level = isa.level()
    from numatp.advice.inspect import kernels_of, summary_of, support_of  # loads numpy

    support = support_of(path)
    tensors = [
        {"name": x.name, "type": x.type, "shape": x.shape, "bytes": x.num_bytes, "memory": support.types.get(x.name)}
        for x in source.tensors.values()
    ]
    weights = sum(prod(info.shape) for info in source.tensors.values())
    num_bytes = sum(info.num_bytes for info in source.tensors.values())
    tokenizer = tokenizer_of(path)
    return {
        "path": str(path), "file_bytes": source.size,
        "architecture": support.architecture or declared(source), "name": name_of(source),
        "supported": not (support.reason or tokenizer["reason"]), "reason": support.reason or tokenizer["reason"],
        "sizes": dict(support.spec.sizes) | {"layers": len(support.spec.layers), "context": support.spec.context}
        if support.spec else None,
        "weights": weights, "weight_bytes": num_bytes, "bits_per_weight": 8 * num_bytes / max(weights, 1),
        "memory_bytes": support.num_bytes or None, "types": summary_of(source.tensors), "notes": support.notes,
        "tokenizer": tokenizer, "isa": level.name,
        "kernels": {program.name: kernels_of(program) for program in support.programs}, "tensors": tensors,
    }  # fmt: skip


def declared(source: GGUFFile | Folder) -> str:
    return source.architecture if isinstance(source, Folder) else source.text("general.architecture", "")


def name_of(source: GGUFFile | Folder) -> str | None:
    return source.path.name if isinstance(source, Folder) else source.text("general.name", "") or None


def tokenizer_of(path: Path) -> dict[str, Any]:
    from numatp.text.tokenizer import open_tokenizer

    try:
        tokenizer = open_tokenizer(path)
    except NumatpError as error:
        return {"reason": str(error), "notes": []}
    return {
        "reason": "", "tokens": tokenizer.vocab_size, "bos": tokenizer.bos, "ends": sorted(tokenizer.eos_ids),
        "chat_template": tokenizer.chat_template, "notes": list(tokenizer.notes),
    }  # fmt: skip


def lines_of(found: dict[str, Any]) -> list[str]:
    sizes, tokenizer = found["sizes"], found["tokenizer"]
    template = tokenizer.get("chat_template")
    shown = {
        "model": f"{found['name'] or ''} ({found['path']}, {found['file_bytes'] / 1e6:.1f} MB)".strip(),
        "architecture": found["architecture"] or "unknown",
        "supported": f"yes, on {found['isa']}" if found["supported"] else f"no: {found['reason']}",
    }
    if sizes:
        used = {name: size for name, size in sizes.items() if size}
        shown["sizes"] = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in used.items())
    shown["weights"] = f"{found['weights'] / 1e6:.1f} M, {found['bits_per_weight']:.2f} bits each" + (
        f"; {found['memory_bytes'] / 1e6:.1f} MB in memory" if found["memory_bytes"] else ""
    )
    shown["types"] = ", ".join(f"{kind}: {t['tensors']} tensors, {t['bytes'] / 1e6:.1f} MB" for kind, t in found["types"].items())
    shown["tokenizer"] = tokenizer["reason"] or f"{tokenizer['tokens']} tokens, text ends at {tokenizer['ends']}"
    shown["chat template"] = f"{len(template)} characters" if template else "none"
    lines = [f"{label:<14}{text}" for label, text in shown.items()]
    lines += [f"{'note':<14}{note}" for note in (*found["notes"], *tokenizer["notes"])]
    for name, kernels in found["kernels"].items():
        lines += [f"kernels, {name}:", *(f"  {count:5d} x {kernel}" for kernel, count in kernels.items())]
    lines.append("tensors:")
    width = max((len(tensor["name"]) for tensor in found["tensors"]), default=0)
    for tensor in found["tensors"]:
        memory = f" -> {tensor['memory']}" if tensor["memory"] not in (None, tensor["type"]) else ""
        shape = " x ".join(map(str, tensor["shape"]))
        lines.append(f"  {tensor['name']:<{width}}  {tensor['type'] + memory:<12}  {shape}")
    return lines

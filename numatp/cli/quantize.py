"""`numatp quantize`: a model in another, usually smaller format."""

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from numatp import quants
from numatp.cli import signals
from numatp.cli.options import note, positive
from numatp.cli.progress import Progress
from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.files.model_file import ModelFile
from numatp.files.models import resolve_model

if TYPE_CHECKING:
    from numatp.weights.rules import Kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="IN", help="name of a pulled model, or path of a GGUF file or a Hugging Face folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="the GGUF file to write; it must not be there yet")
    parser.add_argument("--type", required=True, metavar="TYPE", help="of the matrices, e.g. q8_0, q4_k; q4_k_m and q5_k_m mix")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="(default: one per cpu)")


def run(arguments: argparse.Namespace) -> int:
    path, out, wanted = resolve_model(arguments.model), arguments.out, arguments.type.upper()
    from numatp.weights import convert  # loads numpy

    if wanted in quants.names() and wanted not in convert.type_names():
        why = ", for which an importance matrix is needed" if wanted.startswith("IQ") else ""
        raise UserError(f"--type {arguments.type}: numatp reads {wanted} and does not write it{why}; use a file that has it")
    if wanted not in convert.type_names():
        raise UserError(f"--type {arguments.type}: there is no such type; possible: {', '.join(convert.type_names()).lower()}")
    file, metadata, kinds = _open_folder(path) if path.is_dir() else _open_file(path)
    changes = convert.choose_types(file, wanted, kinds)
    for line in (*file.notes, *convert.describe(changes, wanted)):
        note(line)
    signals.unwind()  # removes what was written so far
    with Progress("quantize") as progress:
        convert.convert(metadata, changes, wanted, out, arguments.threads or len(os.sched_getaffinity(0)), progress.update)
    before, after = (sum(sizes) for sizes in zip(*((c.info.num_bytes, c.num_bytes) for c in changes), strict=True))
    weights = sum(c.num_weights for c in changes)
    note(f"{before / 1e6:.1f} MB to {after / 1e6:.1f} MB, {8 * after / weights:.2f} bits per weight")
    print(out)
    return 0


Opened = tuple[ModelFile, dict[str, bytes], dict[str, "Kind"]]  # the model, its metadata in GGUF, and what tensors of it are


def _open_file(path: Path) -> Opened:
    """A GGUF file of any architecture. Of one that numatp does not know, or not like this, tensors have names alone."""
    from numatp import models

    file = read_gguf(path)
    with suppress(UserError):
        model = models.find(file)
        return file, file.encoded_metadata(), {rule.name: rule.kind for rule in model.rules(model.read_spec(file))}
    return file, file.encoded_metadata(), {}


def _open_folder(path: Path) -> Opened:
    """A folder that is complete."""
    from numatp import models
    from numatp.files.recommended import encoded_sampling
    from numatp.text.gguf_vocabulary import vocabulary
    from numatp.weights.rules import cut
    from numatp.weights.splits import split

    file, model = models.open_model(path)
    spec = model.read_spec(file)
    rules = model.rules(spec)
    cut(file, rules, spec.sizes, split(spec.sizes, 0, 1))
    metadata = file.encoded_metadata() | encoded_sampling(path) | vocabulary(path, spec.sizes.vocab, note)
    return file, metadata, {rule.name: rule.kind for rule in rules}

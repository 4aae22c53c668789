"""`numatp plan`: what a model would be on this machine or another, from headers alone."""

import argparse
import json

from numatp.advice import plan
from numatp.cli.main import speaks
from numatp.cli.options import add_tensor_split, count_or_auto, note, positive
from numatp.engine.draft import Hosts, read_header
from numatp.engine.job import Job
from numatp.engine.links import KNOWN, LINKS, MEASURED, Link, read_link
from numatp.files.measured import read_bandwidth
from numatp.machine import snapshot
from numatp.machine.launch import read_launch
from numatp.machine.servers import SERVERS
from numatp.models import shapes
from numatp.weights.rules import QUANTIZED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = f"a pulled model, a GGUF file, a Hugging Face folder, or a shape that needs no file: {shapes.names()}"
    add = parser.add_argument
    add("-m", "--model", help=f"{models} (default: show the machine alone)")
    add("--ranks", type=count_or_auto, metavar="N|auto", help="default: mpirun's, else the fastest number that fits")
    add_tensor_split(parser)
    add("-c", "--ctx-size", type=positive, metavar="N", help="tokens that the cache holds")
    add("--quantize", choices=list(QUANTIZED), help="matrices of floats on load, as in generate")
    add("--machine", metavar="FILE|NAME", help=f"a saved machine, or one of {', '.join(SERVERS)} (default: this one)")
    text = "hosts like that machine; --ranks and -ts are of all (default: mpirun's, else 1)"
    add("--hosts", type=positive, metavar="N", help=text)
    text = f"what joins them: {KNOWN}; {MEASURED}: under mpirun on these hosts, as it is found to be (default 10gbe)"
    add("--link", type=link_of, default=LINKS["10gbe"], metavar="LINK", help=text)
    add("--save-machine", metavar="FILE", help="write the machine as JSON, for --machine elsewhere")
    add("-o", "--output", choices=["text", "json"], default="text", help="what stdout gets (default text)")


def link_of(text: str) -> Link | None:
    """None: as it is measured."""
    return None if text.lower() == MEASURED else read_link(text)


def measured_link() -> Link:
    from numatp.measure.link import measure_link

    return measure_link()


def run(arguments: argparse.Namespace) -> int:
    """1 if the model does not fit."""
    named = arguments.machine
    machine = snapshot.load(named) if named is not None else snapshot.take(measured=read_bandwidth())
    if arguments.save_machine is not None and speaks():
        snapshot.save(machine, arguments.save_machine)
    if arguments.model is None:
        found, lines, fits = snapshot.to_json(machine), snapshot.describe(machine), True
    else:
        job = Job(arguments.model, context=arguments.ctx_size, quantize=arguments.quantize, tensor_split=arguments.tensor_split)
        started = read_launch() if named is None else None
        ranks = arguments.ranks or (started.size if started and started.size > 1 else None)
        model = read_header(arguments.model)
        for line in model.file.notes if speaks() else ():
            note(line)
        count = arguments.hosts or (-(-started.size // started.local_size) if started else 1)
        hosts = Hosts(count, arguments.link or measured_link()) if count > 1 else None
        made = plan.make_plan(model, machine, job, ranks, hosts)
        found, lines, fits = plan.to_json(made), plan.describe(made), made.fits
    if speaks():
        print(json.dumps(found) if arguments.output == "json" else "\n".join(lines))
    return 0 if fits else 1

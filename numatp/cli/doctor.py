"""`numatp doctor`: what keeps this machine from its full speed, and the commands that mend it."""

import argparse
import json
from dataclasses import asdict

from numatp.advice import doctor
from numatp.cli.main import speaks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="what stdout gets (default text)")


def run(arguments: argparse.Namespace) -> int:
    """1 if there is something to mend."""
    findings = doctor.examine()
    count = sum(finding.state == "mend" for finding in findings)
    if speaks():
        if arguments.output == "json":
            print(json.dumps({"mend": count, "findings": [asdict(finding) for finding in findings]}))
        else:
            print("\n".join(doctor.describe(findings)))
            print(f"{count} finding{'s' * (count != 1)} to mend" if count else "nothing to mend")
    return 1 if count else 0

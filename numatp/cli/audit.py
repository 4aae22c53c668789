"""`numatp audit`: where the kernel says every page of the model is, after the load and again after some tokens.

Exit status 3 is a finding, so that no failure (1) or usage error (2) looks like one. Other commands have it as --audit.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from numatp.cli.options import add_model, job_of, natural, note
from numatp.cli.session import run_session
from numatp.engine.sampling import SamplingParams
from numatp.errors import UserError
from numatp.llm import LLM
from numatp.results import RankPages

FINDING = 3  # exit status
PROMPT = [0] * 16  # what the tokens are does not matter; several, so that both programs run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_min_local(parser)
    parser.add_argument("-n", "--predict", type=natural, default=32, metavar="N", help="tokens in between (default 32)")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="what stdout gets (default text)")


def add_option(parser: argparse.ArgumentParser) -> None:
    """--audit, for commands that do something else."""
    parser.add_argument("--audit", action="store_true", help="count the pages by node, before and after; exit status 3 below")
    add_min_local(parser)


def add_min_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--min-local", type=per_cent, default=99.0, metavar="P", help="per cent of a rank's pages (default 99)")


def per_cent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 100")
    return value


def run(arguments: argparse.Namespace) -> int:
    count = arguments.predict

    def work(llm: LLM) -> int:
        if count >= llm.place.context:
            raise UserError(
                f"-n {count}: the cache has room for {llm.place.context} tokens, with the prompt: use a smaller -n or larger -c"
            )

        def generate() -> None:
            if count:
                params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
                llm.generate(PROMPT[: llm.place.context - count], params)

        before, after, status = audited(llm.audit, arguments.min_local, generate)
        if arguments.output == "json":
            print(json.dumps({"model": llm.place.model, "tokens": count} | report(before, after, arguments.min_local)))
        else:
            print(table(after))
        return status

    return run_session(job_of(arguments, allow_remote=True), arguments.ranks, work)


def audited(
    audit: Callable[[], list[RankPages]], min_local: float, work: Callable[[], object]
) -> tuple[list[RankPages], list[RankPages], int]:
    """(audit() before work(), audit() after it, exit status). Says what it finds on stderr."""
    counts = []
    for when in ("after load", "after the work"):
        counts.append(audit())
        ranks = ", ".join(f"rank {r.rank}: {r.percent_local:.1f} % of {r.pages} on node {r.node}" for r in counts[-1])
        note(f"pages {when}: {ranks}")
        if when == "after load":
            work()
    short = below(min_local, *counts)
    for r in short.values():
        note(f"rank {r.rank} had {r.percent_local:.1f} % of its pages on its node {r.node}, less than --min-local {min_local:g}")
    return counts[0], counts[1], FINDING if short else 0


def below(min_local: float, *counts: list[RankPages]) -> dict[int, RankPages]:
    """The ranks that had less than so many per cent of their pages on their node in any of the counts."""
    return {r.rank: r for count in counts for r in count if r.percent_local < min_local}


def report(before: list[RankPages], after: list[RankPages], min_local: float) -> dict[str, Any]:
    """Both counts of an audit as JSON, and whether they pass."""
    passed = not below(min_local, before, after)
    return {"min_local": min_local, "passed": passed, "ranks": as_json(after), "after_load": as_json(before)}


def as_json(ranks: list[RankPages]) -> list[dict[str, Any]]:
    """One entry per rank, with its groups."""

    def numbers(nodes: dict[int, int], node: int) -> dict[str, Any]:
        pages, local = sum(nodes.values()), nodes.get(node, 0)
        return {"pages": pages, "local": local, "percent_local": round(100 * local / max(pages, 1), 2), "by_node": nodes}

    return [
        {"rank": r.rank, "node": r.node, **numbers(r.by_node, r.node)}
        | {"groups": {name: numbers(nodes, r.node) for name, nodes in r.groups.items()}}
        for r in ranks
    ]


def table(ranks: list[RankPages]) -> str:
    """For people: a line per rank and group of tensors."""
    width = max(len(name) for rank in ranks for name in rank.groups)
    lines = [f"rank  node  {'':{width}}  {'pages':>9}  {'local':>9}  % local  by node"]
    for rank in ranks:
        for name, nodes in [*rank.groups.items(), ("all", rank.by_node)]:
            pages, local = sum(nodes.values()), nodes.get(rank.node, 0)
            places = ", ".join(f"{node}: {count}" for node, count in sorted(nodes.items()))
            share = f"{100 * local / pages:7.1f}" if pages else "      -"
            lines.append(f"{rank.rank:4d}  {rank.node:4d}  {name:{width}}  {pages:9d}  {local:9d}  {share}  {places}")
    return "\n".join(lines)

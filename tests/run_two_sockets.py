"""One model after another trouble, as a script sees it: python run_two_sockets.py MODEL PROMPT. Starting is slow in emulation.

Prints JSON: the text, per cent of each rank's pages on its own node when loaded, when used and when rank 1's were moved to node 0,
and what is said when rank 1 has been killed.
"""

import json
import os
import signal
import sys

import move_pages

from numatp import LLM, RankError, SamplingParams


def own_share(rank):
    """Per cent of what is this rank's alone that is on its node: move_pages leaves the window, which others use too."""
    nodes = [nodes for name, nodes in rank.groups.items() if name != "window"]
    return 100 * sum(n.get(rank.node, 0) for n in nodes) / sum(sum(n.values()) for n in nodes)


def main(model, prompt):
    with LLM(model, ranks=2, threads=1, ctx=256) as llm:
        worker, said = llm._service.start.workers.processes[0].pid, {}

        def count(when):
            said[when] = [(rank.node, rank.percent_local, own_share(rank)) for rank in llm.audit()]

        count("loaded")
        said["text"] = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)).text
        count("used")
        move_pages.main(worker, 0)
        count("moved")
        os.kill(worker, signal.SIGKILL)
        try:
            llm.generate(prompt)
        except RankError as error:
            said["killed"] = str(error).replace(str(worker), "PID")
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

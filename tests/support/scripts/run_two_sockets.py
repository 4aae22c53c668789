"""A model as a script sees it: python run_two_sockets.py MODEL PROMPT.

Prints JSON: the text that two ranks with shares as the nodes' bandwidth generate, each rank's node and the per cent of its pages
there when loaded and when used, and what is said when rank 1 has been killed.
"""

import json
import os
import signal
import sys

from numatp import LLM, RankError, SamplingParams


def main():
    model, prompt = sys.argv[1:]
    with LLM(model, ranks=2, threads=1, ctx=256, tensor_split="auto") as llm:
        worker, said = llm._service.started.workers.processes[0].pid, {}

        def count(when):
            said[when] = [(rank.node, rank.percent_local) for rank in llm.audit()]

        count("loaded")
        said["text"] = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)).text
        count("used")
        os.kill(worker, signal.SIGKILL)
        try:
            llm.generate(prompt)
        except RankError as error:
            said["killed"] = str(error).replace(str(worker), "PID")
    print(json.dumps(said))


if __name__ == "__main__":
    main()

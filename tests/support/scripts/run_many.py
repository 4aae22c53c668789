"""Many questions to the ranks of one start, the same on every rank: python run_many.py QUESTIONS.

QUESTIONS is JSON: "sequences", a list of the arguments of run_sequences.py; "library", [a model that generates, chats and scores,
perhaps more for LLM]; "kept", [a model, a folder for its prompts, perhaps more of a Job]; "wires", the number of ranks by which
sums of one row shall go; "commands", {name: words of numatp}; "another", the name of one, from which on all ranks but the first
are another numatp. Rank 0 prints as JSON what the library said, and per command its status, stdout and stderr; each rank prints
the statuses to stderr.
"""

import json
import os
import sys
import tempfile


def captured(work):
    """[exit status, stdout, stderr] of work()."""
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            status = work()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        for number, file in enumerate(kept, 1):
            os.dup2(file, number)
            os.close(file)
        return [status, *(os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, err))]


def library(path, more=()):
    from numatp import LLM, SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=6)
    with LLM(path, threads=1, ctx=512, **dict(more)) as llm:
        return {
            "rank": llm.rank,
            "ranks": llm.place.ranks,
            "text": llm.generate("The capital of France is", greedy).text,
            "several": [output.text for output in llm.generate(["One, two,", "The sun is"], greedy)],
            "streamed": "".join(llm.stream("The capital of France is", greedy)),
            "chat": llm.chat([{"role": "user", "content": "Hello"}], greedy).text,
            "logprobs": llm.score("The capital of France is Paris.").logprobs,
        }


def kept(path, folder, more=()):
    """[text, tokens that were not computed], and the same after a restart."""
    from numatp import LLM, SamplingParams
    from numatp.engine.job import Job

    job = Job(path, threads=1, context=512, prefix_cache=True, prompt_cache_dir=folder, **dict(more))
    said = []
    for _ in range(2):
        with LLM(job) as llm:
            output = llm.generate(list(range(200)), SamplingParams(temperature=0, max_tokens=4))
        said.append([output.text, output.cached_tokens])
    return said


def main():
    questions = json.loads(sys.argv[1])
    from run_sequences import main as run_sequences

    from numatp.cli import main as cli
    from numatp.engine import wires
    from numatp.machine.launch import read_launch

    if questions.get("wires"):
        wires._seconds = lambda world, team, sections, tried: abs(tried.count - questions["wires"])
    for words in questions.get("sequences", ()):
        sys.argv = ["run_sequences", *words]
        status, _, error = captured(run_sequences)
        if status:
            sys.exit(error)
    said = {name: work(*questions[name]) for name, work in (("library", library), ("kept", kept)) if name in questions}
    cli.PATIENCE = 0  # no process ends after a command
    commands, launched = questions.get("commands", {}), read_launch()
    rank = launched.rank if launched else 0
    for name, words in commands.items():
        if rank and name == questions.get("another"):
            from numatp.engine import load

            load.__version__ = "0.0.1"
        sys.argv = ["numatp", *words]
        said[name] = captured(cli.main)
    line = " ".join(map(str, [f"rank {rank}:", *(said[name][0] for name in commands)]))
    os.write(2, f"{line}\n".encode())  # in one piece, which the launcher keeps whole
    if rank == 0:
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()

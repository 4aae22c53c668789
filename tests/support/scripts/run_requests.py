"""Requests through the scheduler, all submitted at once: the tokens that each is answered with, as JSON.

python run_requests.py MODEL RANKS PLAN — PLAN is JSON: "prompts", "max_tokens", "context" (tokens of all), "at_once", "cancelled"
(the number of one request that is cancelled after its first token).
"""

import json
import sys


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    model, ranks, text = sys.argv[1:]
    plan = json.loads(text)
    job = Job(model=model, threads=1, max_rows=48, max_sequences=plan["at_once"], context=plan["context"])
    started = start_ranks(job, int(ranks))
    from numatp.engine.engine import Engine, serve
    from numatp.engine.sampling import SamplingParams
    from numatp.engine.scheduler import Scheduler
    from numatp.engine.sequence import Continuation
    from numatp.engine.token import Token

    if started.world.rank:
        return serve(job, started)
    engine = Engine(job, started)
    scheduler, answers = Scheduler(engine), []
    for number, prompt in enumerate(plan["prompts"]):
        answer = []
        params = SamplingParams(temperature=0, max_tokens=plan["max_tokens"])
        request = Continuation(list(prompt), answer.append, params, frozenset())
        answers.append((number, request, answer))
        scheduler.submit(request)
    while scheduler.busy:
        scheduler.step()
        for number, request, answer in answers:
            if number == plan["cancelled"] and answer:
                request.cancelled.set()
    failed = [item for _, _, answer in answers for item in answer if isinstance(item, BaseException)]
    if failed:
        raise failed[0]
    print(json.dumps([[item.id for item in answer if isinstance(item, Token)] for _, _, answer in answers]))
    engine.close()
    if started.workers:
        started.workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

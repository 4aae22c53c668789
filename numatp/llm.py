"""The library: a model that generates, chats and scores, from any thread of a script, a notebook or an MPI program."""

import atexit
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from numbers import Integral, Real
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from numatp.engine.collective import Collective
from numatp.engine.counts import Counts
from numatp.engine.job import Job
from numatp.engine.sampling import SamplingParams, recommended_params
from numatp.engine.service import Service
from numatp.engine.start import find_model
from numatp.engine.token import Event, Finish, ScoredPrompt, Token
from numatp.errors import NumatpError, UserError
from numatp.results import Output, Place, RankPages, Scores, Stats
from numatp.text.grammar import Grammar
from numatp.text.parts.piece import Piece, ToolCall

if TYPE_CHECKING:
    from numatp.engine.sequence import Continuation
    from numatp.text.parts.formats import Parts

log = logging.getLogger("numatp")
log.addHandler(logging.NullHandler())  # or Python would print warnings that nobody asked to see
Message = dict[str, Any]
Prompt = str | list[int] | Sequence[Message]  # text, token ids or a chat
T = TypeVar("T")


def _whole(value: Any, name: str) -> int | None:
    """UserError for what is no number of things."""
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} is {value!r} and must be a whole number, 1 or more")
    return int(value)


def _items(given: Any) -> list[Any]:
    """What is in a list, or an array of numpy. UserError for what is none."""
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise UserError(f"a prompt is a text or a list of token ids, and not {type(given).__name__}")
    return list(given)


def _is_chat(prompt: Prompt) -> bool:
    """Whether a text, or a list, is one of messages."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)


def _checked_tools(given: Any) -> list[Any]:
    """UserError for what describes no tools."""
    if not isinstance(given, (list, tuple)):
        raise UserError(f"tools are a list, and not {type(given).__name__}")
    for tool in given:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f'a tool is {{"type": "function", "function": {{"name": ..., ...}}}}, and not {str(tool)[:60]!r}')
    return list(given)


def count_pages(service: Service) -> list[RankPages]:
    """On rank 0: where the pages of every rank are now."""
    return [RankPages.from_json(rank) for rank in service.call(lambda engine: engine.audit())]


class LLM:
    """A model in memory, on all NUMA nodes of this machine.

    model: name of a pulled model, or path of a GGUF file or a Hugging Face folder. ranks: a number, or "auto": the launcher's,
    else those with which decoding is predicted to be fastest (engine/draft.py). threads: per rank; None is one per core. ctx:
    tokens that the cache holds, of all sequences together; None is what the model was trained for, at most 8192. nodes, cpus:
    like "0,1" and "0-31|32-63". tensor_split: each rank's share of the model, like [3, 1], or "auto": as the nodes' measured
    bandwidth; None is even. max_sequences: how many are generated at the same time. ubatch: tokens of one Step. quantize: what
    becomes of matrices of floats on load, "q8" (the default for folders), "q4" or "none" (the default for GGUF files).
    wire: how sums go between hosts, where "bf16" is half as long and less exact. pipeline: whether hosts hold layers, which their
    ranks cut, instead of slices of all. same_bits: the same logits to the last bit for 1, 2, 4 and 8 ranks (numatp/README.md).
    prefix_cache: whether what was computed of a text is kept for others that begin with it. step_ms: that a token should take on
    average while prompts come in beside it.
    spec: whether tokens are guessed from what the text has said before and checked, several in one Step, with the same text as
    without: where the last three tokens came before; "auto" wants eight in mixtures of experts, whose rows are dearer.
    others: what the other ranks do that a launcher started: "call" as below, or "serve". wait: False returns as soon as the ranks
    are started; the model is there when open() returns. progress(done, total): bytes, while loading. A Job in place of `model`
    says all but ranks, others, wait and progress.

    Raises UserError for bad input, MachineError where this machine cannot do it, RankError when another rank ended.

    Under mpirun every rank runs the script and makes the same calls: rank 0's arguments count, all ranks get its results, and
    calls that differ raise RankError on all ranks. The methods may be called from several threads (not under mpirun).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Job,
        ranks: Literal["auto"] | int = "auto",
        threads: int | None = None,
        ctx: int | None = None,
        *,
        nodes: str | None = None,
        cpus: str | None = None,
        tensor_split: Sequence[float] | Literal["auto"] | None = None,
        max_sequences: int = 16,
        ubatch: int = 512,
        allow_remote: bool = False,
        quantize: Literal["q8", "q4", "none"] | None = None,
        cache_type: Literal["f16", "q8_0"] = "f16",
        wire: Literal["f32", "bf16"] = "f32",
        pipeline: bool = False,
        same_bits: bool = False,
        prefix_cache: bool = True,
        step_ms: int = 250,
        spec: Literal["off", "ngram", "auto"] = "auto",
        others: Literal["call", "serve"] = "call",
        wait: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        count = None if ranks == "auto" else _whole(ranks, "ranks")
        if isinstance(model, Job):
            job = model
        else:
            for name, text in (("nodes", nodes), ("cpus", cpus)):
                if not isinstance(text, str | None):
                    raise UserError(f"{name} is {text!r} and must be a text like '0,1'")
            shares = () if tensor_split in (None, "auto") else tensor_split
            if not isinstance(shares, Sequence) or not all(isinstance(share, Real) for share in shares):
                raise UserError(f"tensor_split is {tensor_split!r} and must be a list of numbers or 'auto'")
            job = Job(
                model=find_model(os.fspath(model)), context=_whole(ctx, "ctx"),
                threads=_whole(threads, "threads"), nodes=nodes, cpus=cpus, max_rows=_whole(ubatch, "ubatch") or Job.max_rows,
                max_sequences=_whole(max_sequences, "max_sequences") or Job.max_sequences, allow_remote=allow_remote,
                quantize=quantize, tensor_split=tensor_split, cache_type=cache_type, wire=wire, pipeline=bool(pipeline),
                same_bits=bool(same_bits), prefix_cache=bool(prefix_cache), step_ms=_whole(step_ms, "step_ms") or Job.step_ms,
                spec=spec,
            )  # fmt: skip
        self._others = others
        self._service = Service(job, count, progress)
        self.rank = self._service.rank
        launched = self._service.started.mpi and others == "call"
        self._collectively = Collective(self._service.started.world if launched else None)
        self._job = job
        atexit.register(self.close)
        if wait and not (self.rank and others == "serve"):
            self.open()

    def open(self) -> None:
        """Returns when the model is loaded; raises what kept it from that. For an LLM that was made with wait=False."""
        try:
            self._open()
        except BaseException as error:
            self.close()
            if self._others == "serve":
                self.abort(str(error) if isinstance(error, NumatpError) else type(error).__name__)
            raise

    def _open(self) -> None:
        from numatp.text.matcher import Grammars
        from numatp.text.tokenizer import open_tokenizer

        service, job = self._service, self._job
        log.info(service.started.line)
        try:
            self.tokenizer = open_tokenizer(job.model)
        finally:
            engine = service.engine()
        self._grammars = Grammars(self.tokenizer)
        for note in (*service.started.notes, *self.tokenizer.notes):
            log.warning(note)
        log.info(engine.pages_line)
        self.default_params = recommended_params(job.model)
        layout = engine.loaded.layout
        self.place = Place(
            job.model, service.started.world.size, engine.team.threads, layout.context,
            engine.loaded.spec.context, service.started.line,
            layout.weight_bytes, layout.cache.num_bytes,
        )  # fmt: skip
        self.stats = Stats(engine.load_seconds, engine.bytes_per_token, engine.reads, engine.pages_line)

    def serve(self) -> int:
        """On a rank whose `others` are to "serve": its part of the work until rank 0 closes. An exit status: 0."""
        self._service.wait()
        return 0

    # ------------------------------------------------------------ what it does

    @overload
    def generate(self, prompt: str | list[int], params: SamplingParams | None = None) -> Output: ...
    @overload
    def generate(self, prompt: list[str] | list[list[int]], params: SamplingParams | None = None) -> list[Output]: ...

    def generate(
        self, prompt: str | list[int] | list[str] | list[list[int]], params: SamplingParams | None = None
    ) -> Output | list[Output]:
        """Continues a text, or token ids; a list of texts (or of lists of ids) gives a list of Outputs, generated together.

        UserError for an empty prompt, or one that leaves no room in the context.
        """
        items = [prompt] if isinstance(prompt, str) else _items(prompt)
        if not isinstance(prompt, str) and all(isinstance(item, str) or hasattr(item, "__len__") for item in items):
            return self._answers("generate", lambda: [self.submit(cast("Prompt", item), params) for item in items])
        return self._answers("generate", lambda: [self.submit(cast("Prompt", prompt), params)])[0]

    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, *,
        tools: Sequence[Mapping[str, Any]] | None = None, template_kwargs: Mapping[str, Any] | None = None,
    ) -> Output:  # fmt: skip
        """The answer to messages like {"role": "user", "content": "Hello"}, by the model's own chat template.

        tools: what the model may call, like {"type": "function", "function": {"name": ..., "description": ..., "parameters": a JSON
        schema}}; its calls are the Output's tool_calls. What comes of them goes into the next chat as messages of role "tool".
        template_kwargs: what else the template reads, like {"enable_thinking": False}. The name of a special token in a message is
        text.
        """
        if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in _items(messages)):
            raise UserError('chat takes messages like [{"role": "user", "content": "Hello"}]; generate and stream take a text')
        if tools:
            template_kwargs = {**(template_kwargs or {}), "tools": _checked_tools(tools)}
        return self._answers("chat", lambda: [self.submit(messages, params, template_kwargs)])[0]

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> "Answer":
        """Asks for the continuation of a text, token ids or chat messages, and returns at once: the Answer is then under way.

        On rank 0 alone.
        """
        if not isinstance(params, SamplingParams | None):
            raise UserError(f"params are SamplingParams(...), and not {type(params).__name__}")
        if not isinstance(template_kwargs, Mapping | None):
            raise UserError(f"template_kwargs are a dict of what the chat template reads, and not {type(template_kwargs).__name__}")
        prompt = prompt if isinstance(prompt, str) else _items(prompt)
        tokens = self.encode(prompt, template_kwargs)
        parts = self.tokenizer.parts(template_kwargs) if _is_chat(prompt) else None
        return Answer(self, tokens, params or self.default_params, parts)

    def start(
        self,
        tokens: list[int],
        params: SamplingParams,
        put: Callable[[Event], None],
        progress: bool = False,
        cache_salt: str = "",
        parts: "Parts | None" = None,
    ) -> "Continuation":
        """Asks for the continuation of token ids, for callers that wait in their own way, and returns at once. On rank 0 alone.

        put is called on the engine's thread, which waits for it, with each Token and then the Finish, or with an exception: it
        hands them over and does nothing else. Setting `cancelled` of what is returned ends it, with a Finish too. progress: put
        gets the prompt's Progress as well, after each Step that had some of it. cache_salt: what the cache has of others is used if
        they had the same. parts: of the answer to a chat, whose grammar begins behind the reasoning.
        """
        from numatp.engine.sequence import Continuation
        from numatp.text.reasoning import reasoning_of

        self.check_length(tokens, room=0 if params.max_tokens == 0 else 1)
        self._check_tokens(params.logit_bias)
        reasoning = reasoning_of(self.tokenizer, tokens, parts) if params.grammar and parts else None
        matcher = self._grammars.matcher(params.grammar, reasoning) if params.grammar else None
        sequence = Continuation(
            list(tokens), put, params, self.tokenizer.eos_ids, self.tokenizer.vocab_size, progress, matcher, cache_salt
        )
        self._service.submit(sequence)
        return sequence

    def check_grammar(self, grammar: Grammar) -> None:
        """UserError for one that does not compile, which may take a second; answers that follow it then start at once."""
        self._grammars.compile(grammar)

    def encode(self, prompt: Prompt, template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """The ids of a text, of chat messages, or those that were given."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        items = _items(prompt)
        if _is_chat(items):
            return self.tokenizer.encode_chat(items, template_kwargs)
        for item in items:
            if not isinstance(item, Integral) or isinstance(item, bool):  # a float would lose its fraction in silence
                held = f"{str(item)[:60]!r} ({type(item).__name__})"
                raise UserError(f"a prompt is a text or a list of token ids, which are whole numbers; this one holds {held}")
        return list(map(int, items))

    def check_length(self, tokens: list[int], room: int = 0) -> None:
        """UserError for tokens that are none of the model's, or that leave no `room` in the context."""
        limit = self.place.context
        if not tokens:
            raise UserError("the prompt is empty: give some text")
        if len(tokens) + room > limit:
            raise UserError(f"the prompt has {len(tokens)} tokens, the context {limit}: a shorter prompt or a larger -c (ctx)")
        self._check_tokens(tokens)

    def _check_tokens(self, tokens: Iterable[int]) -> None:
        vocab = self.tokenizer.vocab_size
        for token in tokens:
            if not 0 <= token < vocab:
                raise UserError(f"token {token} is outside the model's vocabulary of {vocab}")

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """The text piece by piece, for a text, token ids or chat messages. Closing the iterator cancels the rest.

        Under mpirun the pieces reach other ranks than 0 when the answer is complete.
        """
        if self._collectively:
            return iter(self._collectively("stream", lambda: list(self.submit(prompt, params))))
        return iter(self.submit(prompt, params))

    def score(self, text: str | list[int], count: int | None = None) -> Scores:
        """Log-probabilities of the last `count` tokens, by default of all but the first."""
        from numatp.engine.sequence import Scoring

        def work() -> Scores:
            tokens = self.encode(text)
            wanted = len(tokens) - 1 if count is None else count
            if not isinstance(wanted, Integral):
                raise UserError(f"count is {wanted!r} and must be a whole number")
            if len(tokens) < 2 or not 0 < wanted < len(tokens):
                raise UserError(f"a text of {len(tokens)} tokens has no {wanted} scores: give at least two tokens")
            self.check_length(tokens)
            done: SimpleQueue[list[float] | BaseException] = SimpleQueue()
            self._service.submit(Scoring(tokens, done.put, int(wanted)))
            scores = done.get()
            if isinstance(scores, BaseException):
                raise scores
            return Scores(tokens, scores)

        return self._collectively("score", work, asdict, lambda told: Scores(**told))

    def audit(self) -> list[RankPages]:
        """Where the pages of every rank are now: weights, cache as far as it was used, and its part of the shared window.

        Between two Steps of what is under way. MachineError where the kernel does not tell.
        """
        return self._collectively(
            "audit", lambda: count_pages(self._service), lambda ranks: [asdict(rank) for rank in ranks],
            lambda told: [RankPages.from_json(rank) for rank in told],
        )  # fmt: skip

    def wait(self) -> None:
        """Returns when the model was closed; raises what ended it before. For a thread of its own, which gets no signals."""
        self._service.wait(look=None)

    @property
    def steps(self) -> int:
        """That the engine has done."""
        return self.counts.steps

    @property
    def step_seconds(self) -> float:
        """That the Step under way has taken until now, 0 if there is none. The engine is not asked."""
        began = self.counts.step_began
        return time.monotonic() - began if began else 0.0

    @property
    def model(self) -> str:
        """The path of what is loaded."""
        return self._job.model

    @property
    def pids(self) -> list[int]:
        """The process of every rank of this host."""
        return self._service.started.pids

    @property
    def counts(self) -> Counts:
        """What runs, waits and was done, as of the last Step; on rank 0, from any thread, without asking the engine."""
        return self._service.counts

    def abort(self, text: str) -> None:
        """Ends the job on every rank at once."""
        self._service.abort(text)

    def close(self) -> None:
        """Gives the memory back and ends the other ranks. The LLM cannot be used any more."""
        atexit.unregister(self.close)
        self._service.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None and self._collectively:
            self._service.abort(f"rank {self.rank}: {error[1]}")  # the others may be waiting for our next call
        self.close()

    # ------------------------------------------------------------ inside

    def _answers(self, call: str, submit: Callable[[], list["Answer"]]) -> list[Output]:
        def work() -> list[Output]:
            return [answer.output() for answer in submit()]

        return self._collectively(
            call, work, lambda outputs: [asdict(output) for output in outputs],
            lambda told: [Output.from_json(one) for one in told],
        )  # fmt: skip


class Answer:
    """A text under way: iterate over its pieces, or take the whole as an Output."""

    def __init__(self, llm: LLM, tokens: list[int], params: SamplingParams, parts: "Parts | None" = None):
        from numatp.text.stream import TextStream

        self._queue: SimpleQueue[Event] = SimpleQueue()
        self._text = TextStream(llm.tokenizer, params.stops, tokens, parts, params.min_tokens)
        self.sequence = llm.start(tokens, params, self._queue.put, parts=parts)
        self.tokens: list[Token] = []
        self.scored_prompt: list[Token] = []
        self.finish: Finish | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def __iter__(self) -> Iterator[str]:
        """The answer, without the model's reasoning."""
        with closing(self.pieces()) as pieces:
            yield from (piece.text for piece in pieces if piece.text and piece.part == "answer")

    def pieces(self) -> Generator[Piece]:
        """The answer, the model's reasoning and its calls of tools, in the order in which they are said."""
        try:
            while self.finish is None:
                item = self._queue.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Token):
                    if self._text.stopped:
                        continue  # tokens that were under way when the stop text was seen
                    self.tokens.append(item)
                    pieces = self._text.push(item.id)
                    if self._text.stopped:
                        self.sequence.cancelled.set()
                elif isinstance(item, ScoredPrompt):
                    self.scored_prompt = item.tokens
                    continue
                else:
                    assert isinstance(item, Finish)  # Progress was not asked for
                    self.finish = replace(item, reason="stop") if self._text.stopped else item
                    pieces = self._text.finish()
                yield from pieces
        finally:
            self.sequence.cancelled.set()

    def output(self) -> Output:
        texts = {"answer": "", "reasoning": ""}
        calls: tuple[ToolCall, ...] = ()
        for piece in self.pieces():
            texts[piece.part] += piece.text
            calls += piece.calls
        assert self.finish
        f = self.finish
        return Output(
            texts["answer"], self.token_ids, f.reason, f.prompt_tokens, f.prompt_seconds, f.decoded_tokens, f.decode_seconds,
            texts["reasoning"], f.cached_tokens, calls, tuple(token for token in self.tokens if token.logprob is not None),
            tuple(self.scored_prompt),
        )  # fmt: skip

"""What the engine has done and holds, for whoever watches it from another thread. Importing this loads no numpy."""

from dataclasses import dataclass


@dataclass
class Counts:
    """Written by the engine's thread alone, after every Step; each number may be read at any time from any thread."""

    running: int = 0  # sequences that have a place
    waiting: int = 0  # those that have none yet, or none any more
    blocks: int = 0  # of the cache, of the layers that see most
    blocks_held: int = 0  # by sequences that run
    blocks_cached: int = 0  # by none, and known by the tokens in them
    step_began: float = 0.0  # time.monotonic() when the Step under way began, 0 for none
    steps: int = 0  # that are done; from here on: since the model was loaded
    prompt_tokens: int = 0  # of the sequences that ended
    cached_tokens: int = 0  # of them, found in the cache
    computed_tokens: int = 0  # of prompts, scored texts and what was set back: rows of Steps
    generated_tokens: int = 0
    guessed_tokens: int = 0  # that were checked in Steps of their sequences (engine/drafts.py)
    right_guesses: int = 0  # of them
    set_back: int = 0  # times that a sequence gave its blocks to an older one

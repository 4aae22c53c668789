"""What an engine does with a model before it loads, and how it is refused then."""

import pytest

from numatp import models
from numatp.errors import UserError
from numatp.weights.rules import cut
from numatp.weights.splits import split


def opened(path):
    """(the file, its spec) after all that an engine does before it loads."""
    file, model = models.open_model(path)
    spec = model.read_spec(file)
    cut(file, model.rules(spec), spec.sizes, split(spec.sizes, 0, 1))
    return file, spec


def refused(path, *words, by=opened):
    """Asserts that one line, with the model's name and all the words, ends what `by` does with it."""
    with pytest.raises(UserError) as caught:
        by(path)
    line = str(caught.value)
    assert all(word in line for word in (path.name, *words)) and line.isprintable() and len(line) < 400, line

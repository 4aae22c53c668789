"""Layers that are dealt to hosts (--pipeline), and what a host holds of a model."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.models.golden import GOLDEN

from numatp.engine.engine import Engine
from numatp.engine.job import Job
from numatp.engine.layout import lay_out, open_model
from numatp.engine.sections import sections_of
from numatp.engine.window import Window
from numatp.errors import UserError
from numatp.ranks.hosts import Members
from numatp.ranks.world import World
from numatp.weights.stages import deal


class Nothing:
    """A C runtime in which nothing happens."""

    def numatp_flag_bytes(self, ranks, lanes):
        return 0

    def numatp_ranks_lanes(self, *where):
        pass


def free(count):
    """Layers that read nothing of others."""
    return [None] * count


def runs(sizes, shares, needs=None):
    return [(run.start, run.stop) for run in deal(sizes, shares, needs or free(len(sizes)))]


def test_the_most_that_a_host_has_is_least():
    assert runs([1] * 8, [1, 1]) == [(0, 4), (4, 8)]
    assert runs([1] * 8, [3, 1]) == [(0, 6), (6, 8)]
    assert runs([9, 1, 1, 1, 1, 1], [1, 1]) == [(0, 1), (1, 6)]
    assert runs([2, 3, 4], [1, 1, 1]) == [(0, 1), (1, 2), (2, 3)]  # each has some
    assert runs([5], [1]) == [(0, 1)]


def test_what_a_layer_reads_is_on_its_host():
    assert runs([1] * 6, [1, 1], [None, None, None, 2, None, None]) == [(0, 2), (2, 6)]  # or (0, 4): the first of equals
    assert runs([1] * 6, [1, 1], [None, None, 0, None, 3, 3]) == [(0, 3), (3, 6)]
    with pytest.raises(UserError, match="dealt to 2 at most of these 3 hosts, as layers take more from earlier ones than one row"):
        deal([1] * 6, [1, 1, 1], [None, None, 0, None, 3, 3])
    with pytest.raises(UserError, match="--pipeline: this model's 4 layers can be dealt to 1 at most of these 2 hosts"):
        deal([1] * 4, [1, 1], [None, 0, 0, 0])


def laid_out(name, rank, seats, **job):
    job = Job(str(GOLDEN / f"{name}.gguf"), **job)
    return lay_out(open_model(job), job, rank, [0] * sum(seats), {}, seats)


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "qwen3next", "gemma3", "deepseek4", "glm5-next"])
def test_hosts_hold_all_of_a_model_once(name):
    whole = laid_out(name, 0, [1])
    hosts = [laid_out(name, rank, [1, 1], pipeline=True) for rank in (0, 1)]
    assert [layer for host in hosts for layer in host.stage.layers] == list(range(len(whole.cache.at(0))))
    layers = [{piece.name for piece in host.slices if piece.rule.layer is not None} for host in hosts]
    assert not layers[0] & layers[1] and all(layers)
    assert layers[0] | layers[1] == {piece.name for piece in whole.slices if piece.rule.layer is not None}
    names = [{piece.name for piece in host.slices} for host in hosts]
    assert "token_embd.weight" in names[0] and ("output.weight" in names[1] or "token_embd.weight" in names[1])
    assert not hosts[0].vocab and hosts[1].vocab == whole.vocab
    for part in range(len(whole.cache.parts)):  # of the cache: blocks, or states of recurrent layers
        assert sum(host.cache.parts[part][1] for host in hosts) == whole.cache.parts[part][1]


def test_ranks_of_a_host_cut_its_layers():
    one, two = laid_out("llama", 0, [1, 2], pipeline=True), [laid_out("llama", rank, [1, 2], pipeline=True) for rank in (1, 2)]
    assert len(one.stage.layers) < len(two[0].stage.layers) or one.stage.layers.start == 0
    assert two[0].stage == two[1].stage and two[0].split.heads.stop == two[1].split.heads.start
    assert len(one.split.heads) == len(two[0].split.heads) + len(two[1].split.heads)


def test_where_layers_cannot_be_dealt():
    with pytest.raises(UserError, match="--pipeline deals layers to hosts, and all ranks are on one: leave it out"):
        laid_out("llama", 0, [2], pipeline=True)
    with pytest.raises(UserError, match="can be dealt to 1 at most of these 2 hosts, as layers"):
        laid_out("gemma4-e2b", 0, [1, 1], pipeline=True)
    with pytest.raises(UserError, match="2 layers can be dealt to 2 at most of these 3 hosts: leave it out"):
        laid_out("qwen3moe", 0, [1, 1, 1], pipeline=True)


@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 1), (4, 4)])
def test_scores_have_the_segments_of_who_makes_them(first, last):
    """Rank 0, on a host of `first` ranks, joins what the `last` ranks of the last host have made of their segments."""
    engine, step = object.__new__(Engine), SimpleNamespace(num_logits=[2])
    made = np.arange(first + last)[:, None, None, None] * np.ones((3, 8, 4), np.float32)  # (ranks, rows, segments, 4)
    engine.window = SimpleNamespace(step=step, scores=made, scoring=range(first, first + last))
    engine.loaded = SimpleNamespace(layout=SimpleNamespace(segments=(None,) * (8 // first)))
    parts = engine._parts()
    assert parts.shape == (8, 2, 4) and parts[:, 0, 0].tolist() == np.repeat(np.arange(first, first + last), 8 // last).tolist()


class Mapped:
    """A World of which one rank maps its parts of the window, and counts their bytes."""

    def __init__(self, seats, index, seat):
        self.seat, self.seats, self.num_bytes = seat, seats[index], 0
        self.host, self.size, self.handle = self, sum(seats), None
        members = Members([str(host) for host in range(len(seats))], seats)
        self.hosts = SimpleNamespace(
            members=members, index=index, others=[i for i in range(len(seats)) if i != index], leads=not seat
        )

    def map_shared(self, sizes):
        self.num_bytes += sizes[self.seat] + (sum(sizes[self.seats :]) if self.seat == 0 else 0)
        return [np.empty(size, np.uint8) for size in sizes]

    def map_parts(self, sizes):
        return World.map_parts(self, sizes)

    def told(self, memory):
        return []

    def returned(self, *parts):
        return []

    def returned_columns(self, *parts):
        return []

    def gather(self, value):
        return [value] * self.size


@pytest.mark.parametrize("seats", [[1, 1], [2, 2], [1, 3], [2, 1, 2]], ids=str)
@pytest.mark.parametrize("wire", ["f32", "bf16"])
@pytest.mark.parametrize("layers", [False, True], ids=["slices", "layers"])
@pytest.mark.parametrize("name", ["gemma3", "deepseek4"])  # of which the second passes four rows of a token on
def test_what_goes_between_hosts_is_in_the_room_that_is_asked_for(seats, wire, layers, name, monkeypatch):
    """The window that a rank maps is as large as what it was counted for, which is whether there is room on its node."""
    job = Job(str(GOLDEN / f"{name}.gguf"), wire=wire, check_ranks=True, pipeline=layers)
    model = open_model(job)
    sections = sections_of(model.spec, job, 256, 1)
    monkeypatch.setattr("numatp.engine.wires._seconds", lambda *tried: 1.0)
    monkeypatch.setattr("numatp.engine.window.native.library", Nothing)
    for rank in range(sum(seats)):
        host = next(i for i in range(len(seats)) if rank < sum(seats[: i + 1]))
        seat = rank - sum(seats[:host])
        world = Mapped(seats, host, seat)
        layout = lay_out(model, job, rank, [0] * sum(seats), {}, seats)
        Window(world, sections, SimpleNamespace(threads=1), layout)
        counted = sections.bytes_of(seat) + sections.between_hosts(seats, host, seat, layers)
        assert world.num_bytes == counted


def test_a_message_between_hosts_is_no_longer_than_mpi_counts():
    job = Job(str(GOLDEN / "llama.gguf"), max_rows=1 << 23, context=1 << 23)
    sections = sections_of(open_model(job).spec, job, 1 << 23, 1)
    row = sections.partial // sections.step_rows
    assert sections.slice_bytes(0, 2) + sections.slice_bytes(1, 2) == sections.partial > 2**31
    with pytest.raises(UserError, match=f"-ub 8388608: hosts would exchange {sections.partial / 2**30:.1f} GiB at once"):
        sections.slice_bytes(0, 1)
    assert sections.of_one_row.slice_bytes(0, 1) == 17 * row

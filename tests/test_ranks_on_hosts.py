"""A model whose ranks are on several hosts: the text and, where the cut is the same, the bits of one host."""

import pytest
from support.commands import BIN, run
from support.hosts import cluster

pytestmark = [pytest.mark.cores, pytest.mark.skipif(bool(cluster.reason()), reason=str(cluster.reason()))]

PROMPT = ("-p", "1, 2, 3, 4, 5,", "-n", 16, "--temp", 0, "--check-ranks")
MAIN = ("-P", "-c", "from numatp.cli.main import main; main()")


@pytest.fixture(scope="module")
def hosts():
    with cluster.Cluster("a", "b") as made:
        yield made


@pytest.fixture(scope="module")
def alone(model_path):
    """The text of one host."""
    return run(BIN / "numatp", "generate", "-m", model_path, *PROMPT, "--ranks", 2).stdout


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("library", ["openmpi", "mpich"])
def test_text_of_two_hosts(hosts, alone, model_path, mpich, library, each):
    bin = BIN if library == "openmpi" else mpich
    result = hosts.run("a", *hosts.mpirun(bin, each, bin / "python", *MAIN, "generate", "-m", model_path, *PROMPT))
    assert result.returncode == 0, result.stderr
    assert result.stdout == alone
    assert "2 hosts; host a: " in result.stderr


def test_another_model_on_one_host(hosts, model_path, tmp_path):
    """Each host looks at its own files."""
    changed = bytearray(model_path.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "model.gguf").write_bytes(changed)
    script = f'exec numatp generate -m "$(hostname | sed "s|a|{model_path}|;s|^b$|{tmp_path}/model.gguf|")" -p x -n 1'
    result = hosts.run("a", *hosts.mpirun(BIN, 1, "env", f"PATH={BIN}:/usr/bin:/bin", "sh", "-c", script))
    assert result.returncode
    lines = [line for line in result.stderr.splitlines() if line.startswith("numatp: ")]
    assert lines[-1] == "numatp: rank 1 on host b has another model than rank 0: copy the same files to each host", result.stderr
    assert result.stdout == ""

"""What any README shows must work. Code stands between fences, which say what it is:

python              runs as it stands, by itself and on two ranks of mpirun
sh                  each line runs, in an empty folder, with an answer so short that it takes no minutes
console             each `$ command` runs and prints what is shown; `...` stands for what is left out
sh elsewhere, console elsewhere
                    needs another machine, other files or minutes: programs, options, files and targets exist
text, c             is shown only
"""

import importlib
import re
import shlex
import sys
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import pytest
from support.commands import BIN, TESTS, mpirun, run

from numatp import models, quants
from numatp.cli.main import COMMANDS, Parser

ROOT = TESTS.parent
READMES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("[a-z]*/**/README.md"))]
README = READMES[0].read_text()
FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
INDENTED = re.compile(r"\n\n {4,}(?![-*\d ])(.*)")  # Markdown takes it for code too
KINDS = {"python", "sh", "console", "sh elsewhere", "console elsewhere", "text", "c"}
AROUND = {"mpirun", "mpiexec", "srun", "numactl", "setarch", "env"}  # programs that start another one
CHECKED = {"numatp", "make", "python", "pytest", "pip"}
SHOWN = {"cat", "cd", "echo", "gcc", "git", "objdump", "./exchanges"}


class Block(NamedTuple):
    where: str
    kind: str
    text: str

    @property
    def commands(self):
        """Without their comments; of a console what stands behind a $."""
        if self.kind.startswith("console"):
            return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (re.sub(r"(^|\s+)#.*", "", line) for line in lines) if line]

    @property
    def outputs(self):
        """Of a console, a list of lines for each command."""
        parts = re.split(r"^\$ .*\n", self.text, flags=re.MULTILINE)
        return [part.splitlines() for part in parts[1:]]


def blocks_of(path):
    for indent, kind, text in FENCE.findall(path.read_text()):
        lines = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        yield Block(str(path.relative_to(ROOT)), kind, lines)


BLOCKS = [block for path in READMES for block in blocks_of(path)]


def commands(*kinds):
    """Each with the lines that it prints, or None where they are not shown or not to be had here."""
    found = []
    for block in BLOCKS:
        if block.kind in kinds:
            outputs = block.outputs if block.kind == "console" else [None] * len(block.commands)
            found += [pytest.param(*pair, id=f"{block.where}-{pair[0]}") for pair in zip(block.commands, outputs, strict=True)]
    return found


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_says_what_it_is(path):
    text = path.read_text()
    assert not {block.kind for block in blocks_of(path)} - KINDS
    outside = FENCE.sub("", text)
    assert "```" not in outside, "a fence that nothing closes"
    assert not INDENTED.findall(outside), "code without a fence"


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize("where", sorted({block.where for block in BLOCKS if block.kind == "python"}))
def test_python(where, ranks, tmp_path, model_path):
    """All snippets of one README in one process, in their order."""
    snippets = [block.text for block in BLOCKS if block.kind == "python" and block.where == where]
    (tmp_path / "script.py").write_text("\n".join(snippets))
    command = [sys.executable, tmp_path / "script.py"]
    result = mpirun(ranks, *command) if ranks else run(*command)
    assert result.returncode == 0, result.stderr
    if where == "README.md":
        assert "Paris" in result.stdout


def short(command):
    """The same with few tokens and little memory."""
    command = re.sub(r"-n \d+", "-n 8", command)
    if " bandwidth " in f"{command} ":
        return f"{command} --size 1 --no-keep"  # the user's cache gets nothing that a test measured
    if " chat " in command:
        return f"echo Hello | {command} -n 8"
    if " bench " in command:  # as it stands it takes minutes
        return re.sub(r"-r \d+", "", command) + (" --help" if " -d " in command else " -r 1 --roofline 64")
    if " generate " in command and " -n " not in command:
        return f"{command} -n 8"
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user stands: the README is there, a text, and what earlier commands have written."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "README.md").write_text(README[:6000])  # three windows of 512 tokens for perplexity
    (folder / "notes.txt").write_text("The three largest cities of France are")
    return folder


@pytest.mark.parametrize("command, output", commands("sh", "console"))
def test_commands(command, output, folder, model_path):
    result = run("sh", "-c", f"cd {shlex.quote(str(folder))} && PATH={shlex.quote(str(BIN))}:$PATH && {short(command)}")
    found = "doctor" in command and result.returncode == 1  # something to mend on this machine
    assert result.returncode == 0 or found, result.stderr
    assert result.stdout.strip() or "--save-machine" in command or "-o " in command, result.stderr
    if output is not None:
        shown = re.escape("\n".join(output)).replace(r"\.\.\.", r"[\s\S]*")
        assert re.fullmatch(shown, result.stdout.rstrip("\n")), result.stdout


@pytest.mark.parametrize("command, output", commands("sh", "sh elsewhere", "console", "console elsewhere"))
def test_what_commands_name_exists(command, output):
    for words in simple_commands(command):
        check(words)


def simple_commands(line):
    """Of a line with pipes and lists: the words of each command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in [*lexer, ";"]:
        if word in ("|", "||", "&&", ";"):
            yield words
            words = []
        else:
            words.append(word)


def check(words):
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    name, rest = Path(words[0]).name, words[1:]
    if name in AROUND:
        check(list(dropwhile(lambda word: word not in CHECKED | SHOWN, rest)))
    elif name == "numatp":
        assert rest[0] in COMMANDS, words
        parser = Parser()
        importlib.import_module(f"numatp.cli.{rest[0]}").add_arguments(parser)
        parser.parse_args(rest[1:])
    elif name == "make":
        rules = re.findall(r"^([\w$()/.-]+):", (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv"), re.MULTILINE)
        assert not [word for word in rest if "=" not in word and word not in rules], words
    elif name == "python" and rest[0] != "-m":
        check_script(rest)
    elif name == "pytest" or (name == "python" and rest[1] == "pytest"):
        for word in rest:
            assert not word.startswith("tests/") or (ROOT / word.split("::")[0]).exists(), words
    elif name == "pip":
        assert rest[0] in ("install", "wheel"), words
    else:
        assert words[0] in SHOWN, f"{words[0]}: a program that this test does not know"


def check_script(words):
    """A script of the tree knows the options that it is given; script.py is the reader's own."""
    if words[0] != "script.py":
        text = (ROOT / words[0]).read_text()
        assert not [word for word in words if re.match(r"--?[a-z]", word) and f'"{word}"' not in text], words


def test_the_lists_of_formats_and_architectures_are_whole():
    line = next(line for line in README.splitlines() if line.startswith("| formats |"))
    assert set(re.findall(r"[A-Z]+\d+(?:_\w+)?", line)) == set(quants.names())
    line = next(line for line in README.splitlines() if line.startswith("| architectures |"))
    assert set(re.findall(r"`([\w-]+)`", line)) == set(models.architectures())


def test_links_lead_somewhere():
    for path in READMES:
        for target in re.findall(r"\]\(([^):#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= 200

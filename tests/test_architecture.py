"""Every house rule holds for every file, and is proven to catch a breach."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture_rules import (
    LAYERS,
    MAX_ENTRY_LINES,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    Source,
    docstrings,
    file_length,
    function_length,
    handlers,
    layers,
    lazy,
    libraries,
    names,
    prints,
    unsafe_loads,
    workplace,
)

ROOT = Path(__file__).parents[1]
PROSE = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".sh", ".sbatch", ".cfg", ".ini", ".html", ".js", ".css", ""}
"""Suffixes of what we write; data files carry the words of their speakers."""
Rule = Callable[[Source], Iterator[str]]

LONG_FUNCTION = "def f() -> None:\n" + "    x = 1\n" * MAX_FUNCTION_LINES
# rule, path of a violating sample, its text
BREACHES: list[tuple[Rule, str, str]] = [
    (layers, "moss/data/a.py", "from moss.model.delay import DelayModel"),
    (layers, "moss/model/a.py", "import moss.loss"),
    (layers, "moss/loss.py", "from moss import data"),
    (layers, "moss/tokenizer/a.py", "def f():\n    from ..model import delay"),
    (layers, "moss/tokenizer/__init__.py", "from ..data import shard"),
    (layers, "moss/evaluation/a.py", "from moss.training.run import train"),
    (layers, "moss/training/a.py", "import importlib\nimportlib.import_module('moss.evaluation.run')"),
    (layers, "moss/errors.py", "from moss.spec import TokenizerSpec"),
    (layers, "moss/sequence/a.py", "from moss.data.files import atomic_write"),
    (layers, "moss/__init__.py", "from moss.spec import TokenizerSpec"),
    (layers, "moss/__init__.py", "def f():\n    from moss.training.run import train"),
    (layers, "moss/attic/a.py", ""),
    (libraries, "moss/evaluation/a.py", "from lightning.pytorch import Trainer"),
    (libraries, "moss/config/schema.py", "import omegaconf"),
    (libraries, "moss/training/a.py", "from hydra import compose"),
    (libraries, "moss/data/a.py", "from transformers import AutoTokenizer"),
    (libraries, "train.py", "import lightning"),
    (libraries, "moss/model_zoo.py", "import transformers"),
    (libraries, "moss/data/a.py", "import pickle"),
    (lazy, "moss/evaluation/a.py", "import librosa"),
    (lazy, "moss/evaluation/a.py", "class A:\n    from faster_whisper import WhisperModel"),
    (names, "moss/data/utils.py", ""),
    (names, "moss/common/a.py", ""),
    (names, "tests/helpers.py", ""),
    (file_length, "moss/data/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (file_length, "train.py", "x = 1\n" * (MAX_ENTRY_LINES + 1)),
    (file_length, "evaluate.py", "x = 1\n" * (MAX_ENTRY_LINES + 1)),
    (function_length, "tests/a.py", LONG_FUNCTION),
    (function_length, "moss/a.py", "class A:\n" + re.sub("^", "    ", "async " + LONG_FUNCTION, flags=re.M)),
    (prints, "moss/data/a.py", "def f():\n    print('x')"),
    (handlers, "moss/data/a.py", "try:\n    f()\nexcept:\n    raise"),
    (handlers, "moss/data/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (
        handlers,
        "moss/data/a.py",
        "for x in y:\n  try:\n    f()\n  except (OSError, Exception) as e:\n    continue",
    ),
    (handlers, "moss/data/a.py", "def g():\n    try:\n        f()\n    except BaseException:\n        return None"),
    (handlers, "moss/data/a.py", "import contextlib\nwith contextlib.suppress(Exception):\n    f()"),
    (unsafe_loads, "moss/model/a.py", "model.load_state_dict(state, strict=False)"),
    (unsafe_loads, "moss/model/a.py", "torch.load(path)"),
    (unsafe_loads, "moss/model/a.py", "torch.load(path, weights_only=False)"),
    (unsafe_loads, "moss/data/a.py", "np.load(path, allow_pickle=True)"),
    (unsafe_loads, "moss/model/a.py", "from_pretrained(path, trust_remote_code=True)"),
    (docstrings, "moss/data/a.py", "x = 1"),
    (docstrings, "moss/data/a.py", '"""M."""\ndef f() -> None:\n    return None'),
    (docstrings, "moss/data/a.py", '"""M."""\nclass A:\n    """A."""\n    def f(self) -> None:\n        return None'),
    (workplace, "moss/a.py", 'PATH = "/wo·rk/data"'),
    (workplace, "docs/a.md", "see ../sha·red/x"),
    (workplace, "Makefile", "pip install -i https://pypi·.org/simple"),
    (workplace, "a.sh", "curl http://deb.debian·.org"),
    (workplace, "moss/a.py", "x = 1  # TO·DO: later"),
    (workplace, "docs/a.md", "as issue· 2 asks"),
]
ALLOWED = [
    (
        layers,
        "moss/training/a.py",
        "from moss.data.shard import Example\nfrom .optim import build\nimport torch.nn",
    ),
    (layers, "moss/config/a.py", "from moss.errors import ConfigError\nfrom moss.spec import TokenizerSpec"),
    (libraries, "train.py", "import hydra"),
    (libraries, "moss/training/a.py", "import lightning.pytorch as pl"),
    (lazy, "moss/evaluation/a.py", "def f():\n    import librosa"),
    (lazy, "moss/evaluation/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import librosa"),
    (
        handlers,
        "moss/data/a.py",
        "try:\n  f()\nexcept OSError:\n  pass\nexcept Exception as e:\n  log(e)\n  raise",
    ),
    (unsafe_loads, "moss/data/a.py", "torch.load(path, weights_only=True)\nload_state_dict(state, strict=True)"),
    (docstrings, "moss/data/a.py", '"""M."""\ndef _f():\n    def g():\n        pass\nclass _A:\n    def f(self): ...'),
    (workplace, "docs/a.md", "the network/wo·rk/balance of a run; reissue· 3"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BREACHES))


def tracked_files() -> list[Path]:
    """Files under version control or about to be; without git, all files that are not products."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    products = {".venv", ".git", "data", "runs", "outputs", "__pycache__", "build", "dist"}
    return [p for p in ROOT.rglob("*") if p.is_file() and p.relative_to(ROOT).parts[0] not in products]


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    found = [Source(p.relative_to(ROOT).as_posix(), p.read_text()) for p in tracked_files() if p.suffix == ".py"]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule is not workplace], ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule, sources: list[Source]) -> None:
    breaches = [f"{source.path}: {breach}" for source in sources for breach in rule(source)]
    assert not breaches, f"{rule.__doc__}\n" + "\n".join(breaches)


def test_no_file_names_a_workplace() -> None:
    texts = [p for p in tracked_files() if p.suffix in PROSE]
    files = [Source(str(p.relative_to(ROOT)), p.read_text(errors="replace")) for p in texts]
    found = [f"{file.path}: {breach}" for file in files for breach in workplace(file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "text"), BREACHES)
def test_breach_is_caught(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text.replace("·", ""))))


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED)
def test_allowed_is_not_caught(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source(path, text.replace("·", ""))))


def test_every_room_is_on_the_map() -> None:
    rooms = {p.stem if p.is_file() else p.name for p in (ROOT / "moss").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert rooms - {"__init__", "__pycache__"} <= set(LAYERS)


def test_importing_the_package_loads_no_room() -> None:
    program = "import sys, moss; sys.exit(any(n == 'torch' or n.startswith('moss.') for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

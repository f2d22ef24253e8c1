"""The house rules of docs/architecture.md: tables, and one function per rule that yields the breaches of a file."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

ENTRY_POINTS = ("train.py", "evaluate.py")

# room of moss/ -> layer; a room imports rooms of a lower layer and itself, nothing else. The fractions order the
# three rooms of L0 among themselves.
LAYERS = {
    "errors": 0.0,
    "command": 0.1,
    "spec": 0.1,
    "config": 0.2,
    "sequence": 1,
    "tokenizer": 2,
    "model": 2,
    "loss": 2,
    "data": 2,
    "generation": 3,
    "training": 4,
    "evaluation": 4,
}
# What the package itself, the front door, may hand out (inside functions: `import moss` loads no room).
FRONT_DOOR = ("moss.generation.loading.", "moss.generation.speech_model.", "moss.tokenizer.interface.")
# library -> the modules of moss/ (prefixes) that may import it; entry points may import hydra and omegaconf.
ONLY_IN = {
    "lightning": ("moss.training",),
    "pytorch_lightning": (),
    "hydra": ("moss.config.compose",),
    "omegaconf": ("moss.config.compose",),
    # The last one runs the published code, which is written for transformers.
    "transformers": ("moss.model", "moss.generation", "benchmarks.reference_models"),
    "peft": ("moss.model",),
    "deepspeed": ("moss.training",),
    "pickle": (),
    "dill": (),
    "joblib": (),
}
ENTRY_LIBRARIES = {"hydra", "omegaconf"}
# Extras, or slow to import: inside a function only, so that `--help` is quick and the core installs without them.
LAZY = {
    "av",
    "deepspeed",
    "faster_whisper",
    "funasr",
    "jiwer",
    "librosa",
    "matplotlib",
    "onnxruntime",
    "peft",
    "pesq",
    "pyarrow",
    "pycodec2",
    "pystoi",
    "resemblyzer",
    "silero_vad",
    "sklearn",
    "speechmos",
    "wandb",
    "webrtcvad",
    "whisper",
    "zhconv",
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ENTRY_LINES = 400, 60, 40
# A dot in the middle keeps this file clear of itself: unfinished work, and paths and hosts of one machine.
FORBIDDEN_TEXT = re.compile(
    "|".join(
        [
            r"(?<![\w.~])/wo·rk/",
            r"(?<!\w)/ho·me/\w",
            r"/tmp/pl·an",
            r"\.\./sha·red",
            r"sha·red/(?:parity|golden|reference)",
            r"pypi·\.org",
            r"pythonhosted·\.org",
            r"(?:deb|security)\.debian·\.org",
            r"\bTO·DO\b",
            r"\bFIX·ME\b",
            r"\bissue· #?\d",
        ]
    ).replace("·", "")
)
EMPTY_STATEMENTS = ("pass", "continue", "...", "return", "return None")


@dataclass(frozen=True)
class Source:
    """A Python file: path relative to the repository, and its text."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_package(self) -> bool:
        return self.module.split(".")[0] == "moss"

    @property
    def is_entry_point(self) -> bool:
        return self.path in ENTRY_POINTS

    def imports(self, nodes: list[ast.AST] | None = None) -> Iterator[str]:
        """Dotted names of what is imported, relative and dynamic imports included."""
        package = self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]
        for node in self.nodes if nodes is None else nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*parents, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                first = node.args[0] if node.args else None
                yield first.value if isinstance(first, ast.Constant) else "a name computed at run time"


def layers(source: Source) -> Iterator[str]:
    """Rooms import lower layers only; siblings and the two tops do not know each other."""
    parts = source.module.split(".")
    if parts[0] != "moss":
        return
    room = parts[1] if len(parts) > 1 else ""
    if room and room not in LAYERS:
        yield f"room {room!r} has no layer"
        return
    for name in source.imports():
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0] if package == "moss" else room
        lower = room and target in LAYERS and LAYERS[target] < LAYERS[room]
        handed_out = not room and name.startswith(FRONT_DOOR)
        if target != room and target in LAYERS and not lower and not handed_out:
            yield f"imports {name}"


def libraries(source: Source) -> Iterator[str]:
    """Some libraries stay in one room."""
    for name in source.imports():
        library = name.split(".")[0]
        entry = library in ENTRY_LIBRARIES and source.is_entry_point
        homes = ONLY_IN.get(library)
        at_home = homes is None or any(f"{source.module}.".startswith(f"{home}.") for home in homes)
        if not at_home and not entry and not source.path.startswith("tests/"):
            yield f"imports {name}"


def lazy(source: Source) -> Iterator[str]:
    """Extras and slow libraries are imported inside functions."""
    inner = [node for node in source.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner += [node for node in source.nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in _dump(node.test)]
    inside = {id(node) for outer in inner for node in ast.walk(outer)}
    outside = [node for node in source.nodes if id(node) not in inside]
    if source.is_package:
        yield from (f"imports {name} when loaded" for name in source.imports(outside) if name.split(".")[0] in LAZY)


def names(source: Source) -> Iterator[str]:
    """No drawer for odds and ends."""
    yield from (f"named {part}" for part in source.module.split(".") if part in FORBIDDEN_NAMES)


def file_length(source: Source) -> Iterator[str]:
    """A file fits in one reading, an entry point on one screen."""
    limit = MAX_ENTRY_LINES if source.is_entry_point else MAX_FILE_LINES
    if (lines := len(source.text.splitlines())) > limit:
        yield f"{lines} lines, limit {limit}"


def function_length(source: Source) -> Iterator[str]:
    """A function fits on a screen."""
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name}: {lines} lines, limit {MAX_FUNCTION_LINES}"


def prints(source: Source) -> Iterator[str]:
    """The package logs; command lines write results to stdout."""
    for node in source.nodes:
        if source.is_package and isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield f"line {node.lineno}: print"


def handlers(source: Source) -> Iterator[str]:
    """No error disappears."""
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            broad = re.search(r"\b(Base)?Exception\b", _dump(node.type))
            empty = all(_dump(statement) in EMPTY_STATEMENTS for statement in node.body)
            if node.type is None or (broad and empty):
                yield f"line {node.lineno}: except {_dump(node.type)}"
        elif isinstance(node, ast.Call) and _dump(node.func).endswith("suppress"):
            yield from (f"line {node.lineno}: suppress" for a in node.args if _dump(a).endswith("Exception"))


def unsafe_loads(source: Source) -> Iterator[str]:
    """Nothing is loaded half, unpickled, or run because a checkpoint says so."""
    for node in source.nodes:
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: _dump(keyword.value) for keyword in node.keywords}
        if given.get("strict") == "False":
            yield f"line {node.lineno}: strict is False"
        if "trust_remote_code" in given or (
            given.get("allow_pickle") == "True" and not source.path.startswith("tests/")
        ):
            yield f"line {node.lineno}: runs code of a file"
        if _dump(node.func) == "torch.load" and given.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load without weights_only"


def docstrings(source: Source) -> Iterator[str]:
    """Everything public of the package says what it is."""
    if not source.is_package:
        return
    public: list[ast.AST] = [ast.parse(source.text)]
    while public:
        node = public.pop()
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if ast.get_docstring(node) is None and not (isinstance(node, ast.FunctionDef) and _is_overload(node)):
            yield f"{getattr(node, 'name', 'module')} has no docstring"
        if isinstance(node, ast.Module | ast.ClassDef):
            kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            public += [n for n in node.body if isinstance(n, kinds) and not n.name.startswith("_")]


def workplace(source: Source) -> Iterator[str]:
    """No path or host of one machine, no unfinished work."""
    yield from (f"says {found.group()!r}" for found in FORBIDDEN_TEXT.finditer(source.text))


def _dump(node: ast.AST | None) -> str:
    return "" if node is None else ast.unparse(node)


def _is_overload(node: ast.FunctionDef) -> bool:
    return any(_dump(d).split(".")[-1] in ("overload", "setter") for d in node.decorator_list)

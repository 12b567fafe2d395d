"""What the pages say works: their commands and their code run, and every public name says what it takes and gives.

Commands that would install something, take minutes or need another machine are not run: `PARSED` has them all, with the
reason, and what stands in for running them.
"""

import argparse
import functools
import inspect
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from numpydoc.docscrape import NumpyDocString
from PIL import Image

import toastlib
from toastlib import cli, errors, plots
from toastlib.data import builtin, catalog
from toastlib.data.builtin import ArrayTable, digits
from toastlib.evaluation import heads, latency
from toastlib.export import compress
from toastlib.runs import parameters
from toastlib.runs.grid import paper_grid, read_grid

ROOT = Path(__file__).resolve().parents[1]
OWN_TEST = {"plugins": "tests/test_plugins.py"}
"""Page -> the test that runs it from its first line to its last, its files, sweeps and all."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.M | re.S)
PARSED = {
    "make": "installs the environment, or runs for minutes: its target must exist",
    "pip": "installs: read by pip's own parser, the files and extras that it names must exist",
    "venv": "installs: its words are looked at",
    "toast run": "runs for minutes, and its notebook is run by nbval: read by toast's parser, its parameters checked",
    "toast study": "the same",
    "toast sweep": "the same, its grid read",
    "toast status": "looks at a sweep's results: read by toast's parser, its grid read",
    "toast collect": "the same",
    "toast moments": "downloads a large set: read by toast's parser",
}
"""Command -> why it is not run, and what is checked instead."""
ON_CLUSTERS = re.compile(r"\btoast ((?:\\\n|[^&;>|#\n\"])*)")
"""A toast command inside another: what pages about clusters type into other machines' shells is not run, only read."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced bash and python block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(page: Path, text: str) -> list[list[str]]:
    """The words of every command of a bash block; of a page about clusters, of every toast command in it."""
    if is_about_clusters(page):
        return [["toast", *shlex.split(found.replace("\\\n", " "))] for found in ON_CLUSTERS.findall(text)]
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [[Path(words[0]).name, *words[1:]] for words in lines if words]


def is_about_clusters(page: Path) -> bool:
    return page.parent.name == "cluster"


def kind_of(words: list[str]) -> str:
    """What `PARSED` calls a command."""
    if words[:2] == ["python", "-m"]:
        return words[2]
    return " ".join(words[:2]) if words[0] == "toast" else words[0]


ALL_COMMANDS = [
    (page, words) for page in PAGES for kind, text in blocks(page) if kind == "bash" for words in commands(page, text)
]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in; small stand-ins for what pages name and would fetch, or take long to go through."""
    train, test = digits()
    few = [ArrayTable(part.images[:n], part.labels[:n], part.class_names) for part, n in ((train, 500), (test, 60))]
    monkeypatch.setitem(builtin.EMBEDDED, "digits", lambda: tuple(few))
    for split, part in zip(("train", "test"), few):
        for number in range(40):
            file = tmp_path / f"path/to/images/{split}/{part.labels[number]}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images[number]).save(file)
    (tmp_path / "path/to/checkpoint").symlink_to(catalog.MODELS["vit-mini"])
    monkeypatch.setitem(catalog.MODELS, "vit-s", catalog.MODELS["vit-mini"])
    monkeypatch.setitem(catalog.DATASETS, "cifar10", catalog.DatasetEntry(str(tmp_path / "path/to/images")))
    timed = functools.partial(latency.measure_latency, sizes=(1,))
    monkeypatch.setattr(compress, "measure_latency", timed)
    monkeypatch.setattr(heads, "MIN_STEPS", 100)  # of heads
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page) and page.stem not in OWN_TEST],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_everything_on_the_page_runs(page, desk, capsys):
    import matplotlib.pyplot as plt

    registries = [
        toastlib.statistics.similarity.METRICS,
        toastlib.selection.criteria.CRITERIA,
        toastlib.translators.base.TRANSLATORS,
    ]
    before = [dict(registry) for registry in registries]
    names: dict = {"__name__": "page"}
    try:
        for language, text in blocks(page):
            if language == "python":
                exec(compile(text, page.name, "exec"), names)
            else:
                check_syntax(text)
                for words in commands(page, text):
                    run_or_parse(words, page)
    finally:
        plt.close("all")
        for registry, kept in zip(registries, before, strict=True):
            registry.clear()
            registry.update(kept)


def check_syntax(text: str) -> None:
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr


def run_or_parse(words: list[str], page: Path) -> None:
    """Run a toast command, or parse what `PARSED` says is not run."""
    kind, rest = kind_of(words), words[1:]
    if kind == "make":
        assert set(rest) <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)), words
    elif kind == "pip":
        check_pip(words[words.index("pip") + 1 :])
    elif kind == "venv":
        assert words == ["python", "-m", "venv", ".venv"]
    elif kind in PARSED or is_about_clusters(page):
        check_notebook_command(cli._parser().parse_args(rest))
    else:
        assert words[0] == "toast", f"{words[0]} is not run here: say why in PARSED"
        few = ["--train-size=250", "--calibration-size=60"] if rest[0] == "approximate" else []
        if few and not {"--remove", "--remove-blocks", "--plan"} & set(rest):
            few.append("--max-drop=20")  # so few held-out images promise no less
        assert cli.main([*rest, *few]) == 0, words


def check_pip(words: list[str]) -> None:
    from pip._internal.commands import create_command

    options, wanted = create_command(words[0]).parse_args(words[1:])
    assert all((ROOT / file).is_file() for file in options.constraints)
    for target in [*wanted, *options.editables]:
        assert target == "." or re.fullmatch(r"\.\[(test|onnx|cluster|site)(,(test|onnx|cluster|site))*\]", target), (
            words
        )


def check_notebook_command(options: argparse.Namespace) -> None:
    """Everything that `toast` checks before a notebook runs."""
    given = dict(assignment.split("=", 1) for assignment in getattr(options, "parameter", []))
    if hasattr(options, "notebook"):
        parameters.check_parameters(parameters.find_notebook(options.notebook), given)
    elif hasattr(options, "grid"):
        assert read_grid(ROOT / options.grid)
    else:
        for table in getattr(options, "table", None) or []:
            assert paper_grid(table)
        takers = [parameters.find_notebook(name) for name in parameters.notebook_names()]
        for name, value in given.items():
            notebook = next(path for path in takers if name in parameters.notebook_parameters(path))
            parameters.check_parameters(notebook, {name: value})


def test_no_more_is_only_parsed_than_must_be():
    used = {kind_of(words) for _, words in ALL_COMMANDS}
    assert PARSED.keys() <= used, "a reason that no page needs"
    run = {kind for kind in used - PARSED.keys() if kind.startswith("toast ")}
    subcommands = {f"toast {name}" for name in cli._parser()._subparsers._group_actions[0].choices}
    assert {"toast approximate", "toast doctor"} <= run <= subcommands
    assert {kind for kind in PARSED if kind.startswith("toast ")} == {
        *("toast run", "toast study", "toast sweep"),
        *("toast status", "toast collect", "toast moments"),
    }


def test_wrong_commands_on_a_page_would_be_found(desk):
    for line in (
        "make everything",
        "toast run 02 -p modle=vit-s",
        "toast run 99",
        "toast study --table 77",
        "toast sweep grids/nowhere.yaml",
        "toast approximate vit-mini --data nowhere --out smaller",
        'python -m pip install -e ".[tset]"',
        "curl example.org",
    ):
        [words] = commands(ROOT / "README.md", line)
        with pytest.raises((AssertionError, errors.InputError, SystemExit)):
            run_or_parse(words, ROOT / "README.md")


@pytest.mark.parametrize("page", sorted((ROOT / "docs/howto").glob("*.md")), ids=lambda page: page.stem)
def test_how_to_pages_take_under_thirty_lines_of_code(page):
    code = [text for language, text in blocks(page) if language == "python"]
    assert code or page.stem == "runs"  # commands alone
    for text in code:
        assert sum(bool(line.strip()) for line in text.splitlines()) < 30


PUBLIC = [(home, name) for home, names in toastlib._HOMES.items() for name in names if name != "TRANSLATORS"]
PUBLIC += [("plots", name) for name in plots.__all__]
RAISES = re.compile(r"raise (InputError|unknown\()")
SHAPE = re.compile(r"[Ss]hapes? |\([\w*+. ]+(, [\w*+. ]+)+,?\)|\(images,\)|\(n,\)|number|axes", re.I)
SOURCED = (
    *(f"translators.linear.{name}" for name in ("Affine", "Identity", "Linear", "LowRank", "Orthogonal", "Ridge")),
    *("translators.trained.MLP", "translators.trained.ResMLP", "approximation.fuse.fuse_spans"),
    *("evaluation.probe.Probe", "evaluation.zero_shot.zero_shot_head", "selection.regret.rank_correlation"),
    *(f"evaluation.metrics.{name}" for name in ("accuracy_interval", "exact_mcnemar", "holm", "paired_difference")),
    *("evaluation.sample_size.sample_size_curve", "evaluation.sample_size.variance_split"),
)
"""Functions and classes that compute a published formula or protocol, and name its source."""
SOURCE = re.compile(r"paper|arXiv|\b(19|20)\d\d\b")


def documented(entry: object) -> NumpyDocString:
    return NumpyDocString(inspect.cleandoc(entry.__doc__ or ""))


def described(doc: NumpyDocString) -> dict[str, str]:
    """Parameter -> what is said of it; a dataclass may say it under Attributes."""
    entries = [*doc["Parameters"], *doc["Attributes"]]
    return {name.strip().lstrip("*"): " ".join(e.desc) for e in entries for name in e.name.split(",")}


def own_methods(kind: type) -> dict[str, object]:
    """The public methods and properties that a class defines itself, and what is called to make it."""
    members = {
        name: getattr(member, "__func__", getattr(member, "fget", member)) for name, member in vars(kind).items()
    }
    named = {
        name: member for name, member in members.items() if not name.startswith("_") and inspect.isfunction(member)
    }
    module = Path(inspect.getfile(kind)).name
    return {name: member for name, member in named.items() if Path(inspect.getfile(member)).name == module}


@pytest.mark.parametrize(("home", "name"), PUBLIC, ids=[f"{home}.{name}" for home, name in PUBLIC])
def test_a_public_name_says_what_it_takes_gives_and_refuses(home, name):
    entry = getattr(plots if home == "plots" else toastlib, name)
    doc = documented(entry)
    assert "".join(doc["Summary"]).strip(), "no summary"
    if entry is toastlib.InputError:
        return
    signature, said = inspect.signature(entry), described(doc)
    assert [p for p in signature.parameters if p not in said] == [], "parameters without a word"
    arrays = [p.name for p in signature.parameters.values() if str(p.annotation).endswith(("Tensor'>", "ndarray'>"))]
    assert [p for p in arrays if not SHAPE.search(said[p])] == [], "arrays without a shape"
    if inspect.isclass(entry):
        for method, function in own_methods(entry).items():
            told = documented(function)
            assert "".join(told["Summary"]).strip(), method
            assert told["Raises"] or not RAISES.search(inspect.getsource(function)), f"{method}: no Raises"
        makers = [vars(entry).get(maker) for maker in ("__init__", "__post_init__")]
        sources = [inspect.getsource(maker) for maker in makers if maker and inspect.getfile(maker).endswith(".py")]
        assert doc["Raises"] or not RAISES.search("".join(sources)), "no Raises"
    else:
        assert doc["Returns"] or signature.return_annotation is None, "no Returns"
        if "Tensor" in str(signature.return_annotation):
            assert SHAPE.search(" ".join(line for part in doc["Returns"] for line in part.desc)), "no shape returned"
        assert doc["Raises"] or not RAISES.search(inspect.getsource(inspect.unwrap(entry))), "no Raises"


@pytest.mark.parametrize(("home", "name"), PUBLIC, ids=[f"{home}.{name}" for home, name in PUBLIC])
def test_from_the_fourth_on_parameters_are_named(home, name):
    entry = getattr(plots if home == "plots" else toastlib, name)
    callables = [entry]
    if inspect.isclass(entry):
        made = vars(entry).get("__init__")
        written = inspect.isfunction(made) and made.__code__.co_filename.endswith(".py")  # no dataclass's, no tuple's
        callables = [*own_methods(entry).values(), *([made] if written else [])]
    for function in filter(callable, callables):
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
        late = [p.name for p in parameters[3:] if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert not late, f"{function.__qualname__} takes {late} by place"


@pytest.mark.parametrize("name", SOURCED)
def test_formulas_name_their_source(name):
    assert SOURCE.search(pkgutil.resolve_name(f"toastlib.{name}").__doc__)


def test_pages_link_to_pages_of_the_site_alone():
    """The site's build, which is slow to test, refuses links to other pages of the repository."""
    for page in PAGES[1:]:
        for link in re.findall(r"\]\(([^)#:]+\.(?:md|ipynb))", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve().relative_to(ROOT)
            assert target.parts[0] in ("docs", "notebooks"), f"{page.name}: {link}"

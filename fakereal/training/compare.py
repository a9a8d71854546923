"""Train several configurations on the same split, each by train_model.py in a process of its own.

A run that fails stops none of the others; one that was interrupted is resumed by the same command.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakereal import config as configuration
from fakereal.cli import EXIT_ERROR
from fakereal.config import Config
from fakereal.dataset.split import manifest_rows, scan_and_split, write_manifest
from fakereal.errors import ConfigError
from fakereal.files import shipped_file, write_atomic
from fakereal.labels import SPLITS
from fakereal.model.metadata import weights_sha256
from fakereal.runtime import log, one_line
from fakereal.training.checkpoint import START_OVER

EXPERIMENTS = ("base", "epoch", "sgd", "sigmoid", "val")
"""Classic experiments in configs/: a plain network, and four changes of one thing each."""

_TOP = Path(__file__).resolve().parents[2]  # where train_model.py lies


@dataclass(frozen=True)
class Run:
    """One configuration, and where its results go."""

    name: str
    config: Config
    folder: Path  # of the comparison

    @property
    def model(self) -> Path:
        """The model file; its records lie beside it in `<name>_run/`."""
        return self.folder / f"{self.name}.h5"

    @property
    def records(self) -> Path:
        """The run's own folder."""
        return self.folder / f"{self.name}_run"

    @property
    def asked(self) -> Path:
        """The configuration that the run was started with; with another one it is trained again."""
        return self.records / "asked.yaml"

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.folder / f"{self.name}.log"

    @property
    def cost(self) -> Path:
        """Written last by a training: where it exists, the training is done."""
        return self.records / "cost.json"


def plan(paths: Sequence[Path], folder: Path, overrides: dict[str, Any]) -> list[Run]:
    """Return the runs, on one split that is made once and kept in the folder.

    Args:
        paths: YAML files; each one's stem is the run's name.
        folder: for everything that the comparison writes.
        overrides: dotted keys and values that apply to all of them.

    Raises:
        FakeRealError: a configuration can't be used, or they don't share their images.
    """
    configs = {path.stem: configuration.load(path, overrides) for path in paths}
    if len(configs) < len(paths):
        raise ConfigError("compare: expected files of different names, found the same twice: rename one")
    first = next(iter(configs.values()))
    _check_same_data(configs)
    data = dataclasses.replace(first.data, split_file=str(_split(first, folder / "split.csv")))
    return [
        Run(name, dataclasses.replace(each, data=data, report=_with_speed(each)), folder)
        for name, each in configs.items()
    ]


def _with_speed(config: Config) -> configuration.ReportConfig:
    return dataclasses.replace(config.report, speed=True)


def _check_same_data(configs: dict[str, Config]) -> None:
    """Refuse configurations whose data differ, by the keys that do."""
    trees = {name: dataclasses.asdict(config.data) for name, config in configs.items()}
    first = next(iter(trees))
    for name, tree in trees.items():
        if keys := [f"data.{key}" for key in tree if tree[key] != trees[first][key]]:
            for_all = "--data DIR" if keys == ["data.path"] else f"--set {keys[-1]}=..."
            raise ConfigError(
                f"compare: expected the same data in all configurations, found other {', '.join(keys)} in {name} than"
                f" in {first}: leave one out, or give all the same with {for_all}"
            )


def _split(config: Config, manifest: Path) -> Path:
    """Return the split file of all runs; an existing one is used again, so that a comparison can be resumed."""
    if manifest.exists():
        given = config.data.split_file
        if given and not _assignments(manifest).items() <= _assignments(Path(given)).items():
            raise ConfigError(f"{manifest}: expected the split of {given}, found another: name another --output")
        log(f"split: {manifest}, from an earlier run")
        return manifest
    dataset, split = scan_and_split(config)
    write_manifest(manifest, split, dataset.root)
    return manifest


def _assignments(manifest: Path) -> dict[str, str]:
    """Return the split of each image that takes part, by its content."""
    return {row["sha256"].lower(): row["split"] for row in manifest_rows(manifest) if row["split"] in SPLITS}


def train_all(runs: Sequence[Run], force: bool = False) -> dict[str, str]:
    """Train what isn't trained yet; return for each run that failed the last line that it printed.

    Args:
        runs: what `plan` returned.
        force: keep no backup of a model of another configuration that is replaced.
    """
    failed = {}
    for position, run in enumerate(runs, start=1):
        title = f"{position}/{len(runs)} {run.name}"
        if _is_done(run):
            log(f"{title}: trained already")
            continue
        log(f"{title}: training (log: {run.log})")
        started = time.monotonic()
        code = _train(run, force)
        done = run.cost.exists()
        log(f"{title}: {'done' if done else 'failed'} after {(time.monotonic() - started) / 60:.1f} minutes")
        if not done:
            failed[run.name] = _reason(run.log, code)
            log(f"  {failed[run.name]}")
    return failed


def _is_done(run: Run) -> bool:
    return run.cost.exists() and run.model.exists() and _is_asked(run)


def _is_asked(run: Run) -> bool:
    return run.asked.exists() and run.asked.read_text(encoding="utf-8") == _asked(run)


def _asked(run: Run) -> str:
    """Return what a training depends on, apart from the images: another training may rewrite a file of weights."""
    return (
        f"{configuration.dumps(run.config)}# SHA-256 of the weights: {weights_sha256(run.config.weights) or 'none'}\n"
    )


def _train(run: Run, force: bool) -> int:
    """Train in a process of its own, so that memory, devices and seeds of one run don't affect the next."""
    resume = _is_asked(run)
    run.cost.unlink(missing_ok=True)
    if not resume:
        (run.records / "checkpoint.npz").unlink(missing_ok=True)  # of another configuration
    write_atomic(run.asked, _asked(run).encode())
    code = _run_script(run, resume, force)
    if resume and code == EXIT_ERROR and START_OVER in _last_line(run.log):  # other images than at the first attempt
        code = _run_script(run, False, force)
    return code


def _run_script(run: Run, resume: bool, force: bool) -> int:
    command = [sys.executable, _TOP / "train_model.py", "--config", run.asked, "--output", run.model,
               "--end-with-stdin", *["--resume"] * resume, *["--force"] * force]  # fmt: skip
    # The pipe ends with this process, however that happens, and the training ends with the pipe. `subprocess.run` would
    # kill it on Ctrl-C, and leave its temporary files behind.
    with open(run.log, "ab" if resume else "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        return process.wait()
    finally:  # after Ctrl-C the checkpoint stays, so the same command resumes there
        process.stdin.close()
        process.wait()


def _reason(log_file: Path, code: int) -> str:
    if code < 0:
        return f"killed by signal {-code} (out of memory?), the log is {log_file}"
    return _last_line(log_file) or f"exit code {code}, and nothing in {log_file}"


def _last_line(log_file: Path) -> str:
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((one_line(line) for line in reversed(lines) if line.strip()), "")


def write_experiments(folder: Path) -> list[Path]:
    """Copy the experiments of configs/ into a folder.

    Raises:
        ConfigError: one of them exists already; nothing is written then.
    """
    paths = [folder / f"{name}.yaml" for name in EXPERIMENTS]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: expected no file there, found one: remove it, or name another folder")
    for path in paths:
        text = shipped_file(f"configs/{path.name}").read_text(encoding="utf-8")
        write_atomic(path, text.replace(f"configs/{path.name}", path.as_posix(), 1).encode())
    return paths

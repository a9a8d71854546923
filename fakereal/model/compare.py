"""Trains several configurations on the same split, each in a process of its own; a failure stops none of the others."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fakereal import config as configuration
from fakereal.cli import EXIT_INTERRUPTED, EXIT_OK, one_line, run_door, say, start_keras
from fakereal.config import Config
from fakereal.data.split import SPLITS, manifest_rows, summary, write_manifest
from fakereal.errors import ConfigError, FakeRealError
from fakereal.files import write_whole
from fakereal.model.weights_file import weights_sha256

_TIMED_BATCHES = 5
_BATCH_SIZE = 32
_GRACE_S = 10  # for a training to clear its temporary files away, before it is ended


@dataclass(frozen=True)
class Run:
    """One configuration and where its results go."""

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
        """The configuration as it was asked for: another one is trained anew."""
        return self.records / "asked.yaml"

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.folder / f"{self.name}.log"

    @property
    def cost(self) -> Path:
        """Written last: where it is, the training is done."""
        return self.records / "cost.json"


def plan(paths: Sequence[Path], folder: Path, overrides: dict[str, Any]) -> list[Run]:
    """Returns the runs, on one split that is made once and kept in the folder.

    Args:
        paths: YAML files; each one's stem is the run's name.
        folder: for everything that the comparison makes.
        overrides: dotted keys and values that count in all of them.

    Raises:
        FakeRealError: a configuration can't be used, or they don't share their pictures.
    """
    configs = {path.stem: configuration.load(path, overrides) for path in paths}
    if len(configs) < len(paths):
        raise ConfigError("compare: expected files of different names, found the same twice: rename one")
    first = next(iter(configs.values()))
    _check_same_data(configs)
    manifest = _split(first, folder / "split.csv")
    data = dataclasses.replace(first.data, split_file=str(manifest))
    return [Run(name, dataclasses.replace(config, data=data), folder) for name, config in configs.items()]


def _check_same_data(configs: dict[str, Config]) -> None:
    """Refuses configurations whose data differ, by the keys that do."""
    trees = {name: dataclasses.asdict(config.data) for name, config in configs.items()}
    first = next(iter(trees))
    for name, tree in trees.items():
        if keys := [f"data.{key}" for key in tree if tree[key] != trees[first][key]]:
            for_all = "--data DIR" if keys == ["data.path"] else f"--set {keys[-1]}=..."
            raise ConfigError(
                f"compare: expected the same data in all configurations, found other {', '.join(keys)} in {name} than"
                f" in {first}: leave one out, or say for all {for_all}"
            )


def _assignments(manifest: Path) -> dict[str, str]:
    """Returns the split of each picture that takes part, by its content."""
    return {row["sha256"].lower(): row["split"] for row in manifest_rows(manifest) if row["split"] in SPLITS}


def _split(config: Config, manifest: Path) -> Path:
    """Returns the split file that all runs use; one that is there is used again, so that a comparison can go on."""
    if manifest.exists():
        given = config.data.split_file
        if given and not _assignments(manifest).items() <= _assignments(Path(given)).items():
            raise ConfigError(f"{manifest}: expected the split of {given}, found another: name another --output")
        say(f"split: {manifest}, from before")
        return manifest
    start_keras()  # takes seconds, so every mistake in a configuration is told before
    from fakereal.data.scan import skipped_lines
    from fakereal.model.run import prepare

    dataset, split = prepare(config)
    for line in [*skipped_lines(dataset), *summary(split)]:
        say(line)
    write_manifest(manifest, split, dataset.root)
    return manifest


def train_all(runs: Sequence[Run]) -> dict[str, str]:
    """Trains what isn't trained yet; returns, for each run that failed, the last line that it said."""
    failed = {}
    for number, run in enumerate(runs, start=1):
        title = f"{number}/{len(runs)} {run.name}"
        if _is_done(run):
            say(f"{title}: trained already")
            continue
        say(f"{title}: training (log: {run.log})")
        started = time.monotonic()
        code = _in_process(run)
        say(f"{title}: {'done' if code == EXIT_OK else 'failed'} after {(time.monotonic() - started) / 60:.1f} minutes")
        if not run.cost.exists():
            failed[run.name] = _last_words(run.log, code)
            say(f"  {failed[run.name]}")
    return failed


def _is_done(run: Run) -> bool:
    return run.cost.exists() and run.model.exists() and _is_asked(run)


def _is_asked(run: Run) -> bool:
    return run.asked.exists() and run.asked.read_text(encoding="utf-8") == _asked(run)


def _asked(run: Run) -> str:
    """Returns what a training depends on, apart from the pictures: another training may renew a file of weights."""
    return (
        f"{configuration.dumps(run.config)}# SHA-256 of the weights: {weights_sha256(run.config.weights) or 'none'}\n"
    )


def _in_process(run: Run) -> int:
    """Trains in a fresh process: memory, devices and seeds of one run are nothing to the next."""
    resume = _is_asked(run)
    run.cost.unlink(missing_ok=True)
    if not resume:
        (run.records / "checkpoint.npz").unlink(missing_ok=True)  # of another configuration
    write_whole(run.asked, _asked(run).encode())
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(run, resume))
    process.start()
    try:
        process.join()
    except BaseException:  # Ctrl-C: the checkpoint stays, so the same command goes on from there
        process.terminate()
        process.join()
        raise
    return process.exitcode


def _train(run: Run, resume: bool) -> None:
    """The process: says everything into its log, exits with the code that train_model.py would."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the comparison itself decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(run.log, "a" if resume else "w", encoding="utf-8", errors="backslashreplace") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        code = run_door(lambda _: _trained(run, resume))
    sys.exit(code)


def _end_with_parent() -> None:
    """Ends this process when the comparison is gone, however it was killed: the next one must not find it at work."""
    multiprocessing.parent_process().join()
    _end_soon()  # where the main thread never comes to answer
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: Any) -> None:
    """Answers SIGTERM: temporary files are cleared away on the way out."""
    _end_soon()
    sys.exit(EXIT_INTERRUPTED)


def _end_soon() -> None:
    """Has the system end this process: TensorFlow can hold up the end of Python, when no thread of ours runs again."""
    if hasattr(signal, "alarm"):  # Windows has none, but ends a process at once where SIGTERM is sent
        signal.alarm(_GRACE_S)


def _trained(run: Run, resume: bool) -> int:
    start_keras()
    from fakereal.model import report
    from fakereal.model.checkpoint import CheckpointRefused
    from fakereal.model.run import run as train

    try:
        outcome = train(run.config, run.model, resume)
    except CheckpointRefused as error:  # other pictures than at the first attempt
        say(f"starting anew: {error}")
        outcome = train(run.config, run.model)
    print("\n".join(report.table(outcome.detector)))
    history = outcome.detector.metadata.history
    cost = {
        "minutes": sum(row["seconds"] for row in history) / 60,
        "epochs": len(history),
        "skipped": outcome.skipped,
        "diverged": outcome.diverged,
        "images_per_s": _speed(outcome.detector),
    }
    write_whole(run.cost, json.dumps(cost, indent=1).encode())
    return EXIT_OK


def _speed(detector: Any) -> float:
    """Returns how many decoded pictures a second the network judges, the median of a few batches."""
    size = detector.metadata.preprocessing.image_size_px
    images = np.zeros((_BATCH_SIZE, size, size, 3), np.uint8)
    seconds = []
    for _ in range(1 + _TIMED_BATCHES):  # the first one compiles
        started = time.perf_counter()
        detector.p_real(images)
        seconds.append(time.perf_counter() - started)
    return round(_BATCH_SIZE / float(np.median(seconds[1:])), 1)


def _last_words(log: Path, code: int) -> str:
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    if code < 0:
        return f"killed by signal {-code} (memory?), the log is {log}"
    return one_line(lines[-1]) if lines else f"exit code {code}, and nothing in {log}"


def results(run: Run) -> dict[str, Any]:
    """Returns the run's metrics.json and its cost.

    Raises:
        FakeRealError: its files are damaged.
    """
    try:
        tree = json.loads((run.records / "metrics.json").read_text(encoding="utf-8"))
        return {**tree, "cost": json.loads(run.cost.read_text(encoding="utf-8"))}
    except (OSError, ValueError) as error:
        raise FakeRealError(
            f"{run.records}: expected the results of a training, found {one_line(error)}: remove {run.cost} and repeat"
        ) from error

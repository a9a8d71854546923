"""The Dockerfile, line by line, in a folder: what it copies is there, and what it starts runs with that alone.

Building an image needs Docker, which these tests don't have.
"""

import http.client
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bare_python
import pytest
from conftest import ROOT
from web_apps import png, server


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of each instruction."""
    text = re.sub(r"^#.*\n|\\\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def arguments(keyword: str) -> list[str]:
    return [rest for name, rest in instructions() if name == keyword]


def copied() -> list[tuple[str, str]]:
    """Source and target folder of everything that is copied."""
    lists = [rest.split() for rest in arguments("COPY")]
    return [(source, target) for *sources, target in lists for source in sources]


def exec_form(text: str) -> list[str]:
    """The command of an instruction, with the Python of these tests."""
    words = json.loads(text[text.index("[") :])
    return [sys.executable if word == "python" else word for word in words]


@pytest.fixture
def app(tmp_path) -> Path:
    """What the image holds in /app."""
    for source, target in copied():
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, tmp_path / "app" / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / "app" / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "app" / target)
    return tmp_path / "app"


def test_everything_that_is_copied_exists_and_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source.rstrip("/") for source, _ in copied()} == kept
    tracked = subprocess.run(["git", "ls-files", *kept], cwd=ROOT, capture_output=True, text=True, check=False)
    for source, target in copied():
        assert (ROOT / source).exists()
        assert not source.endswith("/") or target == source
        assert tracked.returncode or source.rstrip("/") in tracked.stdout  # without git, there is nothing to compare


def test_it_installs_what_the_tests_of_prediction_install_and_runs_as_no_root():
    assert "pip install --no-cache-dir -r requirements-predict.txt" in arguments("RUN")
    (user,) = arguments("USER")
    assert int(user) > 0
    assert any(f"useradd --system --uid {user}" in run for run in arguments("RUN"))
    assert arguments("ENV") == ["PYTHONPATH=/app"]
    assert arguments("WORKDIR") == ["/app"]


def test_its_command_serves_from_what_was_copied_with_no_file_written(app, tmp_path):
    def no_file_may_grow():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    (start,), (command,), (check,), (exposed,) = map(arguments, ("ENTRYPOINT", "CMD", "HEALTHCHECK", "EXPOSE"))
    environment = bare_python.environment(tmp_path)
    environment["PYTHONPATH"] = f"{tmp_path}:{app}"
    line = [*exec_form(start)[1:], *exec_form(command), "--port", "0"]
    with server(*line, before=no_file_may_grow, folder=app, **environment) as found:
        healthy = [word.replace(exposed, str(found.port)) for word in exec_form(check)]
        assert str(found.port) in healthy[-1]
        subprocess.run(healthy, check=True)
        connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=60)
        connection.request("POST", "/api/predict?explain=true", png(240), {"Content-Type": "image/png"})
        answer = json.loads(connection.getresponse().read())
        connection.request("GET", "/api/model")
        model = json.loads(connection.getresponse().read())
        connection.request("GET", "/")
        page = connection.getresponse().read().decode()
        connection.close()
        assert found.stop() == 0
    assert "The detector gives a verdict and says how sure it is." in page
    assert answer["predictions"][0]["prediction"] in ("fake", "real")
    assert (answer["model"], model["explains"], answer["predictions"][0]["explanation"]) == ("pretrained", False, None)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(healthy, check=True, stderr=subprocess.DEVNULL)  # nobody listens any more


def test_its_entry_point_predicts_too(app, make_image, tmp_path):
    image = make_image(tmp_path / "photo.jpg", 1, (300, 200))
    (start,) = arguments("ENTRYPOINT")
    command = [*exec_form(start), "predict", str(image)]
    environment = {**bare_python.environment(tmp_path), "PYTHONPATH": f"{tmp_path}:{app}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fake" in done.stdout or "real" in done.stdout

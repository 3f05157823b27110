"""finetune playground: a page in the browser that asks nobody for anything, and in which every text stays text."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, missing
from calling import ROOT, call, done, write_csv
from conftest import toy_rows
from test_trial import turner

from finetune.errors import UserError
from finetune.playground import PORTS, serve
from finetune.trial import Answering, Known

LABELS = ("<script>document.title='x'</script>", "</script><b>")
TEXT = '"><img src=x onerror="document.title=1">'
SECONDS = 120
NOBODY = Answering(["text"], True, lambda texts: pytest.fail("nobody asked"))


def hostile_run(folder: Path) -> Path:
    """Train TF-IDF on texts and labels that would all be markup."""
    rows = [(identity, f"{TEXT} {text}", LABELS[place % 2]) for place, (identity, text, _) in enumerate(toy_rows(24))]
    file = write_csv(folder / "<i>.csv", rows)
    done("baseline", f"data.train={file}", f"data.test={file}", f"output_dir={folder / 'run'}")
    return folder / "run"


@contextlib.contextmanager
def served(folder: Path, runs: list[Path]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Serve runs from a process of their own, in an empty folder; yields it and the address of each."""
    (folder / "empty").mkdir()
    command = [sys.executable, str(ROOT / "tests" / "serving.py"), str(folder / "asked.json"), *map(str, runs)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder / "empty", env=surroundings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        found: list[str] = []
        text = ""
        while len(found) < len(runs) and (line := process.stdout.readline()):
            text += line
            found = re.findall(r'"url": "(.*)"', text)
        assert len(found) == len(runs), process.communicate()[1]
        yield process, found
    finally:
        process.kill()
        process.communicate()


def answers(url: str, *given: object) -> list[list[Any]]:
    """Return what the page is told in turn, for texts and settings."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(
        f"{url}gradio_api/call/answer", json.dumps({"data": given}).encode(), {"Content-Type": "application/json"}
    )
    with opener.open(asked, timeout=SECONDS) as answer:
        event = json.loads(answer.read())["event_id"]
    with opener.open(f"{url}gradio_api/call/answer/{event}", timeout=SECONDS) as stream:
        told = re.findall(r"event: (\w+)\ndata: (.*)\n", stream.read().decode())
    assert [name for name, _ in told if name == "complete"] == ["complete"], told
    return [json.loads(data) for name, data in told if name in {"generating", "complete"}]


def until(window: Browser, script: str) -> Any:
    """Wait until a script returns something."""
    end = time.monotonic() + SECONDS
    while not (found := window.run(f"return {script}")):
        assert time.monotonic() < end, script
        time.sleep(0.05)
    return found


def test_pages_answer_ask_nobody_and_end_with_ctrl_c(
    tmp_path: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts, labels and file names stay text; a phone is wide enough; three families answer as their commands do."""
    labels, turning = hostile_run(tmp_path), turner(tmp_path / "turner", architecture="transformer")
    with served(tmp_path, [turning, tiny_gpt2, labels]) as (process, (text_page, prompt_page, label_page)):
        ((written, probabilities, picture),) = answers(text_page, "red gold")
        assert written == done("predict", turning, "--json", stdin="red gold").json[0]["predicted"]
        assert not probabilities
        assert "<svg" in picture
        *parts, (text, notes) = answers(prompt_page, "a cat", 1, 1, 12, 3)
        given = ("--temperature", 1, "--top-p", 1, "--max-new-tokens", 12, "--seed", 3)
        assert text == done("generate", tiny_gpt2, "--prompt", "a cat", *given, "--json").json["texts"][0]
        assert len(parts) > 3
        assert "12 tokens" in notes
        for path in ("gradio_api/file=/etc/passwd", f"gradio_api/file={labels / 'config.yaml'}"):
            with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(label_page + path)
        if missing():
            with capsys.disabled():
                sys.stderr.write(f"\nnot in a browser: {', '.join(missing())} not installed\n")
        else:
            with browser(tmp_path / "profile") as window:
                look(window, label_page)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert json.loads((tmp_path / "asked.json").read_text()) == []
    assert list((tmp_path / "empty").iterdir()) == []


def look(window: Browser, url: str) -> None:
    """Try the page of the hostile run in a browser."""
    window.ask("url", url=url)
    until(window, "document.querySelectorAll('textarea').length")
    title = window.run("return document.title")
    assert title.startswith("TF-IDF")
    assert "accuracy " in until(window, "document.body.innerText")
    assert "<i>.csv " in window.run("return document.body.innerText")
    text = json.dumps(f"{TEXT} parcel")
    window.run(
        f"const box = document.querySelector('textarea'); box.value = {text};"
        "box.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    press = "[...document.querySelectorAll('button')].find(one => one.innerText.trim() == 'Label').click()"
    window.run(press)
    answered = "document.querySelectorAll('textarea, input[type=text]')[1].value"
    assert until(window, answered) in LABELS
    shown = until(window, "document.body.innerText.includes('%') && document.body.innerText")
    assert all(label in shown for label in LABELS)
    window.run("[...document.querySelectorAll('.gallery-item')][0].click()")
    shown = until(window, "document.body.innerText.includes('in test: ') && document.body.innerText")
    assert re.search(r"majority class: (.*)", shown)[1] in LABELS  # type: ignore[index]
    for width in (360, 1200):
        window.size(width)
        assert window.run("return document.documentElement.scrollWidth") == width
    window.run("const box = document.querySelector('textarea'); box.value = '';"
               "box.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip
    window.run(press)
    until(window, "document.body.innerText.includes('there is no text to answer')")
    assert window.run("return document.title") == title
    assert window.run("return document.querySelectorAll('img[src=x], b, i').length") == 0
    assert [one for one in window.requests() if not one.startswith(url)] == []
    assert window.console() == []


# What is refused


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else real(name))
    outcome = call("playground", tiny_gpt2)
    assert outcome.code == 66
    assert outcome.err.count("\n") == 1
    assert "pip install 'finetune-recipes[playground]'" in outcome.err


def test_a_pretraining_is_refused_and_predict_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "bert"}))
    outcome = call("playground", tmp_path)
    assert outcome.code == 2
    assert f"finetune predict {tmp_path}" in outcome.err


def test_a_port_in_use_or_an_address_of_another_machine_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use; give another") as caught:
            serve(Known("x", []), NOBODY, "127.0.0.1", port)
    assert caught.value.code == 74
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1"):
        serve(Known("x", []), NOBODY, "192.0.2.1", None)


@pytest.mark.parametrize("host", ["", "a..é"])
def test_no_address_does_not_stand_for_all_of_them(host: str) -> None:
    with pytest.raises(UserError, match="--host is no address") as caught:
        serve(Known("x", []), NOBODY, host, 0)
    assert caught.value.code == 2


def test_the_next_free_port_is_taken_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import playground

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(playground, "PORTS", (taken.getsockname()[1], 0))
        with playground._take_port("127.0.0.1", None) as found:
            assert found.getsockname()[1] not in (0, taken.getsockname()[1])
    assert PORTS[0] == 7860


@pytest.mark.parametrize(("host", "private"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_a_page_for_others_is_announced(host: str, private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import playground
    from finetune.commands import serving

    def page(run: str, host: str, port: int | None) -> playground.Served:
        taken = playground._take_port(host, 0)
        return playground.Served("http://x/", type("Quiet", (), {"run": lambda self, sockets: None})(), taken)

    monkeypatch.setattr(serving, "playground", page)
    outcome = done("playground", "x", "--host", host)
    assert outcome.out == "page      http://x/ · Ctrl-C ends it\n"
    assert ("everybody" in outcome.err) is not private

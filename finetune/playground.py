"""A page in the browser to try a trained run: its answers, below what is known of how good they are.

gradio draws it, and uvicorn serves it on a socket of ours: gradio's own `launch` asks its makers for news, and itself
through a proxy. What the page may load and ask is its own address alone (Content-Security-Policy).
"""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from finetune.errors import Exit, UserError
from finetune.trial import Answering, Known, Writing

if TYPE_CHECKING:
    import uvicorn

PORTS = range(7860, 7960)  # tried in turn where none is asked for
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
PAPER = '<div style="overflow-x: auto; background: white; color: black">{}</div>'
SHOWN = 10  # labels, the most probable ones


@dataclass(frozen=True)
class Served:
    """A page at an address; `run` serves it in this thread until Ctrl-C or `server.should_exit` ends it."""

    url: str
    server: "uvicorn.Server"
    socket: socket.socket

    @property
    def is_private(self) -> bool:
        """Tell whether this machine alone can reach it."""
        return ipaddress.ip_address(self.socket.getsockname()[0]).is_loopback

    def run(self) -> None:
        """Serve the page."""
        with self.socket:
            self.server.run(sockets=[self.socket])


def serve(known: Known, trial: Answering | Writing, host: str, port: int | None) -> Served:
    """Make the page of a run at a port, None: the first free one of PORTS; raises UserError (74) where it is taken."""
    taken = _take_port(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import fastapi
    import gradio
    import uvicorn

    with gradio.Blocks(title=known.title, analytics_enabled=False) as page:
        gradio.HTML(_paragraphs(known.facts, known.title))
        _answering(known, trial) if isinstance(trial, Answering) else _writing(known, trial)
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None), page, path="/", root_path="", footer_links=[], run_history=False,
        ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False, max_file_size=1, show_error=False,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    # A page that stays open in a browser must not keep the program from ending.
    how = uvicorn.Config(
        app, log_config=None, timeout_graceful_shutdown=1, headers=[("Content-Security-Policy", POLICY)]
    )
    name = socket.gethostname() if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host
    return Served(f"http://{name}:{taken.getsockname()[1]}/", uvicorn.Server(how), taken)


def _take_port(host: str, port: int | None) -> socket.socket:
    try:
        host.encode("idna")
    except UnicodeError:
        host = ""
    if not host:  # the system would take it for every address
        raise UserError(Exit.USAGE, "--host is no address; give one, or leave it out for this machine alone")
    reason = ""
    for number in PORTS if port is None else [port]:
        try:
            return socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            reason = f"--host {host} --port {number}: {str(error.strerror).partition(' (')[0]}"
            if error.errno != errno.EADDRINUSE:
                break
    raise UserError(Exit.IO_FAILED, f"{reason}; give another, or leave both out")


def _answering(known: Known, trial: Answering) -> None:
    import gradio

    with gradio.Row():
        with gradio.Column():
            given = [gradio.Textbox(label=name, lines=3) for name in trial.columns]
            button = gradio.Button("Label" if trial.labels else "Write", variant="primary")
        with gradio.Column():
            text = gradio.Textbox(label="predicted" if trial.labels else "written", lines=1 if trial.labels else 3)
            bars = gradio.Label(label="probabilities", num_top_classes=SHOWN, show_heading=False, visible=trial.labels)
            notes = gradio.HTML()

    def answered(*texts: str) -> tuple[str, dict[str, float] | None, str]:
        with _errors_shown():
            answer = trial.answer(texts)
        told = _paragraphs([*known.beside.get(texts, []), *answer.notes])
        return answer.text, answer.probabilities, told + (PAPER.format(answer.picture) if answer.picture else "")

    told = [text, bars, notes]
    gradio.on([button.click, *(box.submit for box in given)], answered, given, told, api_name="answer")
    if known.examples:
        gradio.Examples(known.examples, given, told, answered, cache_examples=False, run_on_click=True)


def _writing(known: Known, trial: Writing) -> None:
    import gradio

    temperature, top_p, longest, seed = trial.settings
    with gradio.Row():
        with gradio.Column():
            prompt = gradio.Textbox(label="prompt", lines=3)
            given = [
                gradio.Slider(0, max(2, temperature), temperature, step=0.05, label="temperature (0: greedy)"),
                gradio.Slider(min(0.05, top_p), 1, top_p, step=0.05, label="top-p"),
                gradio.Slider(1, max(500, longest), longest, step=1, label="max new tokens"),
                gradio.Number(seed, label="seed", precision=0, minimum=0),
            ]
            button, stop = gradio.Button("Write", variant="primary"), gradio.Button("Stop")
        with gradio.Column():
            text, notes = gradio.Textbox(label="written", lines=10), gradio.HTML()

    def written(prompt: str, *settings: Any) -> Iterator[tuple[str, str]]:
        with _errors_shown():
            for text, told in trial.write(prompt, settings):
                yield text, _paragraphs(told)

    event = gradio.on([button.click, prompt.submit], written, [prompt, *given], [text, notes], api_name="answer")
    stop.click(None, cancels=[event])
    if known.examples:
        gradio.Examples(known.examples, [prompt], cache_examples=False)


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    import gradio

    try:
        yield
    except UserError as error:
        raise gradio.Error(escape(str(error)), print_exception=False) from None


def _paragraphs(lines: Sequence[str], title: str = "") -> str:
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div style="overflow-wrap: anywhere">{title and f"<h1>{escape(title)}</h1>"}{told}</div>'

"""`python -m serve --system S`: masks by HTTP, and a page at /."""

import dataclasses
import errno
import os
import pathlib
import socket
import sys
from typing import Annotated

import tyro
import uvicorn

from serve.application import application, is_loopback
from serve.limits import Limits
from serve.origins import Origins
from serve.service import JITTERS, Service
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.slots import SLOTS, Slots

TOKEN, KEY = "STABLESAM_TOKEN", "LABEL_STUDIO_API_KEY"  # environment variables, which other users cannot list
KEEP_ALIVE = 30  # seconds that a connection may idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Serves a model to annotation tools and programs, with a page to try it in the browser."""

    system: str = "stable_sam_nano"
    """A shipped model, a checkpoint folder, or BASE+PLUGIN_FILE."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token."""
    port: int = 9090
    """Port to listen on; 0 takes a free one."""
    token: str | None = None
    """Token that requests have to send, of at least 8 characters. Default: $STABLESAM_TOKEN."""
    allow_host: tuple[str, ...] = ()
    """Hosts from which pictures may be fetched, as HOST or HOST:PORT."""
    files: pathlib.Path | None = None
    """Folder whose pictures may be requested by path."""
    label_studio: str | None = None
    """URL of Label Studio, for pictures that were uploaded there; $LABEL_STUDIO_API_KEY is a user's key."""
    jitters: int = JITTERS
    """Number of slightly different prompts that the stability of a mask is measured with."""
    image_size: int | None = None
    """Side of the model's input in pixels. Default: the model's own."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Limits)


def check(options: Options) -> str | None:
    """Checks options that need no model.

    Returns:
        the token.

    Raises:
        InputError: a value out of range, an address that other machines reach without a token, or no such folder.
    """
    options.limits.check()
    token = options.token if options.token is not None else os.environ.get(TOKEN)
    if token is not None and (len(token) < 8 or not token.isascii() or not token.isprintable()):
        raise InputError("--token: give at least 8 printable ASCII characters.")
    if token is None and not is_loopback(options.host):
        raise InputError(f"--host {options.host}: other machines reach it; give a --token, or set ${TOKEN}.")
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port {options.port}: must be from 0 to 65535.")
    if not 1 <= options.jitters <= 100:
        raise InputError(f"--jitters {options.jitters}: must be from 1 to 100.")
    if options.files is not None and not options.files.is_dir():
        raise InputError(f"--files {options.files}: no such folder.")
    if options.label_studio is not None and not options.label_studio.startswith(("http://", "https://")):
        raise InputError(f"--label-studio {options.label_studio}: give a URL, as http://localhost:8080.")
    return token


def serve(options: Options) -> None:
    """Loads the model and serves it until the process is stopped."""
    token = check(options)
    with _listen(options.host, options.port) as listening:  # before the model is loaded and compiled
        _serve(options, token, listening)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; connections wait until the server takes them.

    Raises:
        InputError: another program has the port, or the address is not one of this machine.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            fault = f"--port {port}: another program listens there; stop it, or give another --port."
        else:
            fault = f"--host {host} --port {port}: cannot be listened on ({error.strerror}); give others."
        raise InputError(fault) from None
    return listening


def _serve(options: Options, token: str | None, listening: socket.socket) -> None:
    slots = Slots(tuple(sorted({*SLOTS.prompts, min(options.jitters + 1, SLOTS.prompts[-1])})))
    predictor = Predictor(*load_model(options.system, image_size=options.image_size), slots=slots)
    service = Service(predictor, options.system, limits=options.limits, jitters=options.jitters)
    origins = Origins(
        hosts=options.allow_host,
        folder=options.files,
        label_studio=options.label_studio,
        label_studio_key=os.environ.get(KEY),
        max_bytes=options.limits.max_bytes,
    )
    print(f"{options.system}: compiling for a first box and a first click", flush=True)
    service.warm_up()
    app = application(service, origins, token=token)
    config = uvicorn.Config(
        app, options.host, options.port, log_level="warning", timeout_keep_alive=KEEP_ALIVE, server_header=False
    )
    shown = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    print(f"serving {options.system}: page {address}/, API {address}/docs; Ctrl-C stops", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def main() -> None:
    """Runs the command."""
    keep_compiled_programs()
    with exit_on_input_error():
        try:
            serve(tyro.cli(Options, args=command_line(), prog=called("serve")))
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()

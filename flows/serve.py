"""Serve a student over HTTP: the registered champion, or an export folder by itself."""

import argparse
from pathlib import Path
from typing import Any

from flows.command_line import PARAMS, run_program

MODEL_FILE, CURRENT_FILE = "model.json", "current.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to serve, and where."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a student (feed), whose registered champion is served and followed, or an export "
        "folder (models/students/feed/distilled/export) or a publication folder of the stream "
        "(models/published/feed), which need neither MLflow nor a project",
    )
    parser.add_argument("--alias", default="champion", help="alias of the registered model")
    parser.add_argument("--host", help="default: serve.host (127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: serve.port (8000)")


def run(options: argparse.Namespace) -> None:
    """Serve until stopped."""
    from recsys.serving.server import folder_source, publication_source, serve
    from recsys.serving.settings import ServeSettings

    path = PARAMS / "serve.yaml"
    settings = ServeSettings()
    if path.is_file():
        from recsys.config import load_settings

        settings = load_settings(path, ServeSettings)
    given: dict[str, Any] = {"host": options.host, "port": options.port}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = settings.with_values(chosen, {})
    folder = Path(options.name)
    if (folder / CURRENT_FILE).is_file():
        serve(publication_source(folder), settings)
    if (folder / MODEL_FILE).is_file() or "/" in options.name:
        serve(folder_source(folder), settings)
    from tasks.serving import registered_source

    serve(registered_source(options.name, options.alias), settings)


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)

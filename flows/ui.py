"""Open the user interface of MLflow or Prefect; one clear line if its port is taken."""

import argparse
import os
import socket
import sys
from pathlib import Path

from flows.command_line import PARAMS, run_program

DEFAULT_PORTS = {"mlflow": 5000, "prefect": 4200}
HOST = "127.0.0.1"


def check_port(port: int) -> None:
    """Check that nothing listens on ``port`` of this machine.

    Raises:
        InputError: something does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            from recsys.config import InputError

            raise InputError(
                f"port {port} of {HOST} is taken ({error.strerror}); choose another: --port "
                f"{port + 1}"
            ) from error


def open_interface(name: str, port: int) -> None:
    """Replace this process with the server of the interface ``name``."""
    check_port(port)
    programs = Path(sys.executable).parent
    if name == "prefect":
        os.environ["PREFECT_SERVER_UI_API_URL"] = f"http://{HOST}:{port}/api"  # for the pages
        arguments = [
            str(programs / "prefect"),
            "server",
            "start",
            "--host",
            HOST,
            "--port",
            str(port),
        ]
    else:
        from recsys.config import InputError, load_settings
        from tasks.tracking_settings import TrackingSettings, without_credentials

        uri = load_settings(PARAMS / "tracking.yaml", TrackingSettings).store
        if "://" in uri and not uri.startswith("sqlite"):
            raise InputError(
                f"{PARAMS / 'tracking.yaml'}: runs are on a server; open "
                f"{without_credentials(uri)} in a browser"
            )
        # MLflow's judges and scorers of chats run in ten more processes
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        arguments = [
            str(programs / "mlflow"),
            "ui",
            "--backend-store-uri",
            uri,
            "--host",
            HOST,
            "--port",
            str(port),
            "--workers",
            "1",  # uvicorn kills workers that start in over 5 s: on a busy machine, all of them
        ]
    os.execv(arguments[0], arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the interface's name and ``--port``."""
    parser.add_argument("name", choices=sorted(DEFAULT_PORTS))
    ports = ", ".join(f"{port} for {name}" for name, port in sorted(DEFAULT_PORTS.items()))
    parser.add_argument("--port", type=_port, help=f"port on {HOST}; default: {ports}")


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use a number from 1 to 65535")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """Open the interface in place of this process."""
    open_interface(options.name, options.port or DEFAULT_PORTS[options.name])


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)

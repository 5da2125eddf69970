"""Open a user interface: python -m flows.ui mlflow, or prefect. One clear line if its port is
taken."""

import argparse
import os
import socket
import sys
from pathlib import Path

from flows.command_line import PARAMS, apply_or_exit
from recsys.config import InputError

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
            raise InputError(
                f"port {port} of {HOST} is taken ({error.strerror}); choose another: --port "
                f"{port + 1}"
            ) from error


def open_interface(name: str, port: int) -> None:
    """Replace this process by the server of the interface ``name``."""
    check_port(port)
    programs = Path(sys.executable).parent
    if name == "prefect":
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
        from recsys.config import load_settings
        from tasks.tracking_settings import TrackingSettings

        uri = load_settings(PARAMS / "tracking.yaml", TrackingSettings).uri
        if "://" in uri and not uri.startswith("sqlite"):
            raise InputError(
                f"{PARAMS / 'tracking.yaml'}: runs are on a server; open {uri} in a browser"
            )
        arguments = [
            str(programs / "mlflow"),
            "ui",
            "--backend-store-uri",
            uri,
            "--host",
            HOST,
            "--port",
            str(port),
        ]
    os.execv(arguments[0], arguments)


def main() -> None:
    """Read the command line and open the interface."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(DEFAULT_PORTS))
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    apply_or_exit(lambda: open_interface(given.name, given.port or DEFAULT_PORTS[given.name]))


if __name__ == "__main__":
    main()

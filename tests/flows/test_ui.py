"""A port that is taken, or is none, is one clear line with what to do."""

import argparse
import socket

import pytest

from flows.ui import add_arguments, check_port
from recsys.config import InputError


def test_a_taken_port_is_named_and_a_free_one_passes() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} .* is taken .*--port {port + 1}"):
            check_port(port)
    check_port(port)


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(["mlflow", "--port", port])
    assert exit_info.value.code == 2
    assert f"'{port}' is not a port" in capsys.readouterr().err

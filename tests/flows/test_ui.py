"""A taken port is one clear line, with what to do."""

import socket

import pytest

from flows.ui import check_port
from recsys.config import InputError


def test_a_taken_port_is_named_and_a_free_one_passes() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} .* is taken .*--port {port + 1}"):
            check_port(port)
    check_port(port)

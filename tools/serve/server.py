"""Starts the program under test and waits until it serves."""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Runs a server, and gives its address and process; stops it afterwards and checks that it ends well."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

        def text() -> str:
            log.seek(0)
            return log.read()

        try:
            while not (found := re.search(r"http://[\d.]+:\d+", text())):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text()}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            yield found[0], process
        except BaseException:
            print(text())
            raise
        finally:
            process.terminate()
            code = process.wait(30)
        assert code == 0, f"the server ended with {code}:\n{text()}"

"""Ties the processes of one training together: they begin together, and when one ends, all end, with a line each.

JAX has a watch of its own, but it takes minutes to notice a loss, and then aborts the others with a page of native
code's notes. Here the first process holds a connection to each other one. The end of a process closes its connection,
which the other side learns at once; a machine that is gone is noticed by its silence.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from fakereal.cli import EXIT_ERROR, EXIT_INTERRUPTED
from fakereal.errors import ConfigError, DataError, FakeRealError
from fakereal.runtime import log, one_line

ARRIVAL_S = 300.0
"""So long the first process and the others wait for each other to be started."""

SILENCE_S = 30.0
"""After so long without a sign of life a process is taken for lost."""

_BEAT_S = 1.0
_GREETING_S = 5.0  # so long whoever calls may take to say who they are: the first process says it at once
_HELLO, _AGREE, _BYE, _ENDED = "fakereal-train", "agree", "bye", "ended"
_TOLD_S = 5.0  # so long an error that a lost process may have caused waits for the line that says so


class Peers:
    """The other processes, as this one sees them: the first knows all others, each of them knows the first."""

    def __init__(self, hosts: Sequence[str], index: int) -> None:
        self._hosts, self._index = hosts, index
        self._connections: dict[int, socket.socket] = {}
        self._agreed: queue.Queue[tuple[int, str]] = queue.Queue()
        self._left = False
        self._ending = threading.Lock()
        self._stderr = os.dup(2)  # the last line must be seen, also while native code's notes are held back

    def meet(self) -> None:
        """Waits until all processes are there, and watches over them from then on.

        Raises:
            ConfigError: an address can't be used, or a process was started with other --hosts.
            DataError: somebody didn't come in time.
        """
        # At once: those who were called first must hear of this process while it still waits for the others.
        threading.Thread(target=self._beat, daemon=True).start()
        others = range(1, len(self._hosts)) if self._index == 0 else (0,)
        for number in others:
            self._connections[number] = self._call(number) if self._index == 0 else self._called()
        for number, connection in self._connections.items():
            connection.settimeout(SILENCE_S)
            threading.Thread(target=self._listen, args=(number, connection), daemon=True).start()

    def agree(self, digest: str, on: str) -> None:
        """Waits until all processes are at this point, and makes sure that they have the same there.

        Args:
            digest: names what this process has; one word.
            on: what it is, for people.

        Raises:
            DataError: another process has something else.
        """
        self._tell(f"{_AGREE} {digest}")
        for _ in self._connections:
            number, theirs = self._agreed.get()
            if theirs != digest:
                name, other = (self._name(each) for each in sorted((self._index, number)))
                raise DataError(f"expected the same {on} in all processes, found others in {other} than in {name}")
        if self._index == 0:
            self._tell(f"{_AGREE} {digest}")

    def leave(self) -> None:
        """Says goodbye: this process needs the others no more."""
        self._left = True
        self._tell(_BYE)

    def fail(self, error: BaseException) -> NoReturn:
        """Tells the others why this process ends, and ends it: JAX would wait for them at the door."""
        code = EXIT_ERROR
        if isinstance(error, FakeRealError):
            reason = one_line(error)
        elif isinstance(error, KeyboardInterrupt):
            reason, code = "interrupted", EXIT_INTERRUPTED
        else:
            time.sleep(_TOLD_S)  # where a lost process is behind it, `_listen` ends this one meanwhile
            traceback.print_exception(error)
            reason, code = f"{type(error).__name__}: {one_line(error)}", 1
        self._end(reason, f"{self._name(self._index)}: {reason}", code)

    def _name(self, number: int) -> str:
        return f"process {number} ({self._hosts[number]})"

    def _call(self, number: int) -> socket.socket:
        deadline, told = time.monotonic() + ARRIVAL_S, False
        while True:
            try:
                connection = socket.create_connection(address(self._hosts[number]), timeout=SILENCE_S)
                connection.sendall(self._greeting(number))
                return connection
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self._nobody(number, one_line(error)) from error
            if not told:
                log(f"waiting for {self._name(number)}")
                told = True
            time.sleep(0.2)

    def _called(self) -> socket.socket:
        own = self._hosts[self._index]
        try:
            listener = socket.create_server(address(own))
        except OSError as error:
            raise ConfigError(
                f"--hosts: expected a free address of this machine for process {self._index}, found {own}:"
                f" {error.strerror or error}"
            ) from error
        log(f"waiting for {self._name(0)}")
        deadline = time.monotonic() + ARRIVAL_S
        with listener:
            while (left := deadline - time.monotonic()) > 0:
                listener.settimeout(left)
                try:
                    connection, _ = listener.accept()
                    if self._greeted(connection):
                        return connection
                except OSError:  # nobody, or a stranger who hung up or keeps silent
                    continue
        raise self._nobody(0, f"no call at {own}")

    def _greeting(self, number: int) -> bytes:
        return f"{_HELLO} {number} {','.join(self._hosts)}\n".encode()

    def _greeted(self, connection: socket.socket) -> bool:
        expected = self._greeting(self._index)
        found, deadline = b"", time.monotonic() + _GREETING_S
        while not found.endswith(b"\n") and len(found) < 10_000:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            if not (more := connection.recv(1)):
                break
            found += more
        if found == expected:
            return True
        connection.close()
        if found.startswith(_HELLO.encode()):
            raise ConfigError(
                f"--hosts: expected the same list in all processes, found {one_line(expected.decode()[15:])!r} here"
                f" and {one_line(found.decode(errors='replace')[15:])!r} in {self._name(0)}"
            )
        return False

    def _nobody(self, number: int, found: str) -> DataError:
        return DataError(
            f"expected {self._name(number)} within {ARRIVAL_S:.0f} s, found {found}: start the same command there with"
            f" --host-index {number}"
        )

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_S)
            self._tell("")

    def _tell(self, line: str) -> None:
        for connection in list(self._connections.values()):  # more of them may come meanwhile
            try:
                connection.sendall(f"{line}\n".encode())
            except OSError:  # whoever listens to that connection knows it too, and says so
                continue

    def _listen(self, number: int, connection: socket.socket) -> None:
        found = "ended"
        try:
            for line in connection.makefile("r", encoding="utf-8", errors="replace"):
                word, _, rest = line.strip().partition(" ")
                if word == _BYE:
                    return
                if word == _AGREE:
                    self._agreed.put((number, rest))
                elif word == _ENDED:
                    self._end(rest, rest)
        except TimeoutError:
            found = f"is silent for {SILENCE_S:.0f} s"
        except OSError:
            pass  # its machine closed the connection
        if not self._left:
            lost = f"{self._name(number)} {found}"
            advice = "see its own messages, then start all of them again with --resume"
            self._end(f"expected all {len(self._hosts)} processes to go on, found that {lost}: {advice}", lost)

    def _end(self, line: str, told: str, code: int = EXIT_ERROR) -> NoReturn:
        """Ends this process, whatever its other threads wait for, after telling the other processes why."""
        with self._ending:  # never given back: one line is enough
            self._tell(f"{_ENDED} {told}")
            last = "interrupted" if code == EXIT_INTERRUPTED else f"error: {line}"
            os.write(self._stderr, f"{last}\n".encode(errors="backslashreplace"))
            os._exit(code)


def address(host: str) -> tuple[str, int]:
    """Returns the name and the port of HOST:PORT; an IPv6 address stands in brackets."""
    name, _, port = host.rpartition(":")
    return name.strip("[]"), int(port)

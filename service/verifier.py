"""Secrets and their verifiers: Argon2id over a keyed hash, off the loop; and proofs remembered in memory.

The keyed hash means that a stolen database without `keys/secrets.key` cannot be guessed
at, and that a verifier copied to another account is none there. Verifiers are PHC strings;
one that ends alike up to its hash shares salt and parameters, so that one hash is checked
against all such verifiers of an account.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

from argon2.low_level import ARGON2_VERSION, Type, hash_secret
from attrs import evolve, frozen

from service.model import HashFailed, Overloaded

T = TypeVar("T")

SEAL = "."  # between a PHC string, which has none, and its seal
SALT_BYTES = 16  # RFC 9106, section 3.1
HASH_NICENESS = 10  # setpriority(2): on a busy core, a tenth of what the loop gets
HASH_BYTES = 32  # RFC 9106, section 4: 256 bits
LEAST_MEMORY_KIB = 8  # RFC 9106, section 3.1: for each lane


@frozen
class HashParameters:
    """Argon2id's, as RFC 9106 names them."""

    memory_kib: int
    iterations: int
    parallelism: int

    @property
    def prefix(self) -> str:
        """What a verifier with these parameters begins with."""
        return f"$argon2id$v={ARGON2_VERSION}$m={self.memory_kib},t={self.iterations},p={self.parallelism}$"

    @property
    def work(self) -> float:
        """The KiB that a lane fills. Lanes run at once, so the time of a hash is in proportion to it."""
        return self.memory_kib * self.iterations / self.parallelism

    def less(self, work: float) -> "HashParameters | None":
        """Parameters of a hash that takes the time of one of these and `work` less; `None` if nothing is left."""
        memory_kib = round((self.work - work) * self.parallelism / self.iterations)
        if memory_kib <= 0:
            return None
        return evolve(self, memory_kib=max(memory_kib, LEAST_MEMORY_KIB * self.parallelism))


class Secret(Protocol):
    """A stored secret: its sealed verifier, and where that belongs."""

    @property
    def version(self) -> int: ...

    @property
    def verifier(self) -> str: ...

    @property
    def expires_at(self) -> int | None: ...


class SecretHasher:
    """A bounded pool for Argon2id.

    Verifiers are stored behind a *seal*, a MAC over the verifier and its place: account, version and end. Put anywhere
    else, or back, a verifier is nobody's.

    `workers` hashes run at once (0: one fewer than there are cores, at least one) and at
    most `queue` more wait; one more raises `Overloaded`.
    """

    def __init__(self, key: bytes, parameters: HashParameters, *, workers: int = 0, queue: int = 1024) -> None:
        self._key = key
        self._sealing_key = hmac.digest(key, b"seal", hashlib.sha256)  # no account's message is as short
        self._parameters = parameters
        self.prefix = parameters.prefix
        self._room = queue + (workers or _spare_cores())
        self._running = 0
        # Only on Linux does a thread have a priority of its own.
        initializer = _step_back if sys.platform == "linux" else None
        self._pool = ThreadPoolExecutor(workers or _spare_cores(), thread_name_prefix="argon2", initializer=initializer)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def derive(self, account: str, secret: str, *, version: int, like: str | None = None) -> str:
        """A new verifier of the account's `secret`, sealed for this version of it.

        With `like` it has that verifier's salt and parameters. Raises `Overloaded`, `HashFailed`.
        """
        salt = base64.b64encode(os.urandom(SALT_BYTES)).rstrip(b"=").decode()
        head = _head(like) if like is not None else f"{self.prefix}{salt}"
        verifier = await self._off_the_loop(partial(_hash, self._keyed(account, secret), head))
        return self._seal(account, version, None, verifier)

    def is_sealed(self, account: str, version: int, expires_at: int | None, verifier: str) -> bool:
        """Whether a stored verifier is this version's of this account, with this end, in microseconds since 1970."""
        sealed = self._seal(account, version, expires_at, verifier.partition(SEAL)[0])
        return hmac.compare_digest(sealed.encode(), verifier.encode())

    def seal_again(self, account: str, secret: Secret, expires_at: int | None) -> str:
        """The stored verifier with another end. One whose seal is wrong stays as it is: it matches nothing."""
        if not self.is_sealed(account, secret.version, secret.expires_at, secret.verifier):
            return secret.verifier
        return self._seal(account, secret.version, expires_at, secret.verifier.partition(SEAL)[0])

    def _seal(self, account: str, version: int, expires_at: int | None, verifier: str) -> str:
        # Lengths are fixed before the verifier, so that no two places are one message.
        place = f"{account:24}{version:020d}{expires_at or 0:020d}"
        mac = hmac.digest(self._sealing_key, f"{place}{verifier}".encode(), hashlib.sha256)
        return f"{verifier}{SEAL}{base64.b64encode(mac).decode()}"

    async def match(self, account: str, secret: str, stored: Sequence[Secret], *, uniform: bool = False) -> int | None:
        """The index of the verifier that the account's `secret` has, with one hash for all that share a salt.

        One whose seal is wrong is nobody's. With `uniform`, finding none takes the time of one hash at today's
        parameters, or longer where a verifier's own take longer. Raises `Overloaded`, `HashFailed`.
        """
        whole = self._parameters if uniform else None
        verifiers = [one.verifier.partition(SEAL)[0] for one in stored]
        sealed = [self.is_sealed(account, one.version, one.expires_at, one.verifier) for one in stored]
        return await self._off_the_loop(partial(_match, self._keyed(account, secret), verifiers, sealed, whole))

    def _keyed(self, account: str, secret: str) -> bytes:
        # An account is 24 characters, so that no two pairs are one message. Its verifier is nothing to another account.
        return hmac.digest(self._key, f"{account}{secret}".encode(), hashlib.sha256)

    async def _off_the_loop(self, function: Callable[[], T]) -> T:
        if self._running >= self._room:
            raise Overloaded
        self._running += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, function)
            future.add_done_callback(self._done)
        except BaseException:
            self._running -= 1
            raise
        return await future

    def _done(self, future: "asyncio.Future[T]") -> None:
        self._running -= 1


def _step_back() -> None:
    # A hash takes a core for 20 ms and is waited for anyway; the loop answers dozens of requests meanwhile.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HASH_NICENESS)


def _spare_cores() -> int:
    return max(1, (os.cpu_count() or 1) - 1)


def _match(keyed: bytes, verifiers: Sequence[str], sealed: Sequence[bool], whole: HashParameters | None) -> int | None:
    """The index of the sealed verifier that `keyed` has. Where none is found the hashes take as long as `whole`."""
    for verifier in verifiers:
        _parse(_head(verifier))  # what is no verifier at all is a fault, whatever its seal
    heads = dict.fromkeys(_head(verifier) for verifier, ours in zip(verifiers, sealed, strict=True) if ours)
    derived = {head: _hash(keyed, head) for head in heads}
    for index, verifier in enumerate(verifiers):
        if sealed[index] and hmac.compare_digest(derived[_head(verifier)].encode(), verifier.encode()):
            return index
    rest = None if whole is None else whole.less(sum(_parse(head)[0].work for head in derived))
    if rest is not None:
        _hash(keyed, f"{rest.prefix}{'A' * 22}")  # for its time alone
    return None


def _head(verifier: str) -> str:
    """All of a verifier but its hash: parameters and salt."""
    return verifier.rpartition("$")[0]


def _parse(head: str) -> tuple[HashParameters, bytes]:
    """The parameters and the salt of a verifier, as PHC strings write them. Raises `HashFailed`."""
    with _failing():
        _, name, version, parameters, salt = head.split("$")
        costs = dict(part.split("=") for part in parameters.split(","))
        if name != "argon2id" or version != f"v={ARGON2_VERSION}":
            raise ValueError(name)
        return (
            HashParameters(int(costs["m"]), int(costs["t"]), int(costs["p"])),
            base64.b64decode(salt + "=" * (-len(salt) % 4), validate=True),
        )


def _hash(keyed: bytes, head: str) -> str:
    """The whole verifier that begins with `head`. Raises `HashFailed`."""
    parameters, salt = _parse(head)
    with _failing():
        return hash_secret(
            keyed,
            salt,
            time_cost=parameters.iterations,
            memory_cost=parameters.memory_kib,
            parallelism=parameters.parallelism,
            hash_len=HASH_BYTES,
            type=Type.ID,
        ).decode("ascii")


@contextmanager
def _failing() -> Iterator[None]:
    # An unreadable verifier and an Argon2 that finds no memory alike: no hash, and no text of either.
    try:
        yield
    except Exception as error:
        raise HashFailed(type(error).__name__) from None


class RememberedSecrets:
    """Secrets proven before, in this process's memory alone, as HMACs under a key that dies with it.

    Each is bound to an account and the version of its secret; at most `entries` of them, the
    longest unused going first; each for `ttl_seconds`. A failure is never remembered.
    """

    def __init__(self, entries: int, ttl_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._entries = entries
        self._ttl_seconds = ttl_seconds
        self._monotonic = monotonic
        self._mac = hmac.new(secrets.token_bytes(32), digestmod="sha256")
        self._proofs: OrderedDict[tuple[str, int], tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._proofs)

    def remember(self, account: str, version: int, secret: str) -> None:
        until = self._monotonic() + self._ttl_seconds
        self._proofs[account, version] = self._proof(account, version, secret), until
        self._proofs.move_to_end((account, version))
        while len(self._proofs) > self._entries:
            self._proofs.popitem(last=False)

    def forget(self, account: str, version: int) -> None:
        self._proofs.pop((account, version), None)

    def recall(self, account: str, version: int, secret: str) -> bool:
        """Whether `secret` was proven to be this version of the account's secret, not too long ago."""
        found = self._proofs.get((account, version))
        if found is None:
            return False
        proof, until = found
        if until <= self._monotonic():
            self.forget(account, version)
            return False
        if not hmac.compare_digest(proof, self._proof(account, version, secret)):
            return False
        self._proofs.move_to_end((account, version))
        return True

    def _proof(self, account: str, version: int, secret: str) -> bytes:
        # Lengths are fixed before the secret, so that no two triples are one message.
        mac = self._mac.copy()
        mac.update(f"{account}{version:020d}{secret}".encode())
        return mac.digest()

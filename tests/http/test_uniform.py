"""`http.account_errors = "uniform"`: no refusal of an account tells by its time what is behind it.

Time is the CPU's, with a wide margin: what others do on the machine is not counted.
"""

import time

from service.accounts import AccountDesk
from service.app import LOG, READER
from service.clock import wall_clock
from service.keys import secrets_key
from service.verifier import HashParameters, SecretHasher
from tests.conftest import Start
from tests.harness import SECRET, Answer, Running

COSTS = {"memory_kib": 32_768, "iterations": 2}
OLD = HashParameters(memory_kib=8, iterations=1, parallelism=1)
HALF = HashParameters(memory_kib=16_384, iterations=2, parallelism=1)

UNKNOWN, UNCLAIMED, CLOSED, SUSPENDED, CURRENT, AS_OLD, AS_HALF, OVERLAP = (f"{number:024x}" for number in range(8))
ACCOUNTS = {
    "suspended": SUSPENDED,
    "claim closed": CLOSED,
    "wrong secret": CURRENT,
    "wrong secret of older costs": AS_OLD,
    "wrong secret of half the costs": AS_HALF,
    "wrong secret while two overlap": OVERLAP,
}


def desk(running: Running, parameters: HashParameters) -> AccountDesk:
    """An operator's desk, as it was under other costs."""
    key = secrets_key(running.service.settings.keys_directory, create=False)
    return AccountDesk(
        running.service.app[LOG], running.service.app[READER], wall_clock, SecretHasher(key, parameters, workers=1)
    )


async def furnished(start: Start) -> Running:
    """A service with an account of each kind; the right secret of some is remembered."""
    running = await start(http={"account_errors": "uniform"}, secrets=COSTS)
    old = desk(running, OLD)
    await running.add(UNCLAIMED)
    await running.add(CLOSED, claim_window_seconds=0)
    await running.add(SUSPENDED, secret=SECRET)
    await running.add(CURRENT, secret=SECRET)
    await old.add(AS_OLD, claim_window_seconds=0, secret=SECRET)
    await desk(running, HALF).add(AS_HALF, claim_window_seconds=0, secret=SECRET)
    await old.add(OVERLAP, claim_window_seconds=0, secret=SECRET)
    await old.rotate(OVERLAP, "newer", overlap_seconds=60)
    for account in (SUSPENDED, CURRENT, OVERLAP):
        assert (await running.authenticate(SECRET, account)).status == 200
    await running.desk.suspend(SUSPENDED)
    return running


async def ask(running: Running, path: str, account: str, secret: str) -> Answer:
    if path == "/auth":
        return await running.authenticate(secret, account)
    if path == "/oauth/token":
        return await running.token(secret, account)
    return await running.form(path, {"token": "x"}, basic=f"{account}:{secret}")


async def cost(running: Running, path: str, account: str, secret: str) -> float:
    """The least CPU seconds of two requests that are refused."""
    spent = []
    for _ in range(2):
        began = time.process_time()
        answer = await ask(running, path, account, secret)
        spent.append(time.process_time() - began)
        assert answer.status == 401
    return min(spent)


async def test_every_refusal_takes_the_time_of_one_hash_at_todays_costs(start: Start) -> None:
    running = await furnished(start)
    for path in ("/auth", "/oauth/token", "/introspect", "/revoke"):
        whole = await cost(running, path, "f" * 24, "wrong")
        asks = {name: (account, "wrong") for name, account in ACCOUNTS.items()}
        asks["suspended, right secret"] = SUSPENDED, SECRET
        if path in ("/introspect", "/revoke"):
            asks["unclaimed"] = UNCLAIMED, "wrong"
        for name, credentials in asks.items():
            assert 0.6 < await cost(running, path, *credentials) / whole < 1.6, (path, name)

"""Stage 5: the caller's secret becomes, or stays, the account's; and with it the token is granted.

The verifier, `secret.stored` and `auth.granted` are one transaction, which is `grant`: an
attempt that fails anywhere leaves no secret behind. That transaction decides. Where the
account has changed since `verify_account` read it, what the grant rests on is looked at again.
"""

from attrs import evolve

from events.batch import Outcome, Write
from service.model import Account, AccountDirectory, Claim, Grant, Rejected, StoredAccount, WriteFailed

MAX_CHANGES = 20  # of an account while one request is granted; an operator makes one in a while


async def store_secret(claim: Claim, account: Account, accounts: AccountDirectory, grant: Grant) -> bool:
    """Whether the token is granted; `False` if its key signs no more, and another one has to sign.

    Raises `Rejected`, `HashFailed`, `WriteFailed`, `Overloaded`.
    """
    for _ in range(MAX_CHANGES):
        if account.secret is None or account.outdated:
            outcome = await _store(claim, account, accounts, grant)
        else:
            outcome = await grant(account, "unchanged", account.secret.version)
        if outcome is not Outcome.STALE:
            return outcome is Outcome.DONE
        try:
            account = await _look_again(claim, account, accounts)
        except Rejected:
            await accounts.even_out()  # else a refusal here is told by its time from one at `verify_account`
            raise
    raise WriteFailed


async def _store(claim: Claim, account: Account, accounts: AccountDirectory, grant: Grant) -> Outcome:
    """Grant with a new verifier: the account's first, or one at today's costs."""
    if account.secret is None:
        verifier = await accounts.derive(claim.account, claim.secret, 1)
        write = Write("claim", {"account": claim.account, "verifier": verifier})
        outcome = await grant(account, "claimed", 1, write)
        if outcome is Outcome.DONE:
            accounts.remember(claim.account, 1, claim.secret)
        return outcome
    version = account.secret.version
    verifier = await accounts.derive(claim.account, claim.secret, version)
    replaced = account.secret.verifier
    parameters: dict[str, str | int | None]
    parameters = {"account": claim.account, "version": version, "verifier": verifier, "replaced": replaced}
    return await grant(account, "rehashed", version, Write("rehash", parameters))


async def _look_again(claim: Claim, account: Account, accounts: AccountDirectory) -> Account:
    """What the grant rests on now. Raises `Rejected` where the account's changes forbid it."""
    found = accounts.find_again(claim.account)
    if found is None or found.suspended:
        raise Rejected("account_suspended")
    if account.secret is None:
        return await _claim_again(claim, account, found, accounts)
    # The version is what was proven: whatever verifier it has by now is of the same secret.
    secret = next((one for one in found.secrets if one.version == account.secret.version), None)
    if secret is None:
        raise Rejected("secret_mismatch")
    outdated = accounts.outdated(found, secret)
    return evolve(account, secret=secret, outdated=outdated, version=found.version, until=secret.expires_at)


async def _claim_again(claim: Claim, account: Account, found: StoredAccount, accounts: AccountDirectory) -> Account:
    if not found.secrets:
        if not found.claimable:
            raise Rejected("claim_closed")
        return evolve(account, version=found.version, until=found.claim_until)
    # Another request claimed the account since it was verified: with this secret, it is one and the same caller.
    match = await accounts.match(found, claim.secret)
    if match is None:
        raise Rejected("claim_lost")
    return evolve(account, secret=match[0], version=found.version, until=match[0].expires_at)

"""Stage 5: the caller's secret becomes, or stays, the account's; and with it the token is granted.

The verifier, `secret.stored` and `auth.granted` are one transaction, which is `grant`: an
attempt that fails anywhere leaves no secret behind.
"""

from events.batch import Write
from service.model import Account, AccountDirectory, Claim, Grant, Rejected, StoredSecret


async def store_secret(claim: Claim, account: Account, accounts: AccountDirectory, grant: Grant) -> None:
    """Raises `Rejected("claim_lost")`, `HashFailed`, `WriteFailed`, `Overloaded`."""
    if account.secret is None:
        await _claim(claim, accounts, grant)
    elif account.outdated:
        await _rehash(claim, account.secret, accounts, grant)
    else:
        await grant("unchanged", account.secret.version)


async def _claim(claim: Claim, accounts: AccountDirectory, grant: Grant) -> None:
    verifier = await accounts.derive(claim.account, claim.secret)
    write = Write("claim", {"account": claim.account, "verifier": verifier})
    if await grant("claimed", 1, write):
        accounts.remember(claim.account, 1, claim.secret)
        return
    # Another request claimed the account since it was verified: with this secret, it is one and the same caller.
    found = accounts.find(claim.account)
    if found is None or found.suspended:
        raise Rejected("claim_lost")
    match = await accounts.match(found, claim.secret)
    if match is None:
        raise Rejected("claim_lost")
    await grant("unchanged", match[0].version)


async def _rehash(claim: Claim, secret: StoredSecret, accounts: AccountDirectory, grant: Grant) -> None:
    verifier = await accounts.derive(claim.account, claim.secret)
    write = Write(
        "rehash",
        {
            "account": claim.account,
            "version": secret.version,
            "verifier": verifier,
            "replaced": secret.verifier,
        },
    )
    # Losing means that another request derived it anew, or that it was rotated: it was valid when verified.
    if not await grant("rehashed", secret.version, write):
        await grant("unchanged", secret.version)

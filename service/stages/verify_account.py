"""Stage 2: Claim → Account. Is there such an account, may it be used, and is this its secret?"""

from service.model import Account, AccountDirectory, Claim, Rejected


async def verify_account(claim: Claim, accounts: AccountDirectory) -> Account:
    """Raises `Rejected`; whatever else it raises means that the account could not be looked up."""
    found = accounts.find(claim.account)
    if found is None:
        await accounts.even_out()
        raise Rejected("account_not_found")
    if found.suspended:
        await accounts.even_out()
        raise Rejected("account_suspended")
    if not found.secrets:
        if not found.claimable:
            await accounts.even_out()
            raise Rejected("claim_closed")
        return Account(
            found.id, claim.user_id, proof="claim", secret=None, version=found.version, until=found.claim_until
        )
    match = await accounts.match(found, claim.secret)
    if match is None:
        raise Rejected("secret_mismatch")
    secret, proof = match
    outdated = accounts.outdated(found, secret)
    return Account(found.id, claim.user_id, proof, secret, outdated, found.version, secret.expires_at)

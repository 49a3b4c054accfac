// Clients that know nothing of this service: openid-client asks for a token, jose verifies it.
// `node flow.mjs ISSUER CLIENT_ID CLIENT_SECRET METHOD` prints what each step gave, as one JSON object.
import assert from "node:assert/strict";
import { createRemoteJWKSet, errors, jwtVerify } from "jose";
import * as client from "openid-client";

const [issuer, clientId, secret, method] = process.argv.slice(2);
const authentication = { basic: client.ClientSecretBasic, post: client.ClientSecretPost }[method];
const options = { algorithm: "oauth2", execute: [client.allowInsecureRequests] };

const config = await client.discovery(new URL(issuer), clientId, undefined, authentication(secret), options);
const metadata = config.serverMetadata();
const granted = await client.clientCredentialsGrant(config);
const token = granted.access_token;

const keys = createRemoteJWKSet(new URL(metadata.jwks_uri));
const expected = { issuer, audience: issuer, typ: "at+jwt" };
const { payload, protectedHeader } = await jwtVerify(token, keys, expected);
const forged = token.slice(0, -8) + (token.endsWith("AAAAAAAA") ? "BBBBBBBB" : "AAAAAAAA");
await assert.rejects(jwtVerify(forged, keys, expected), errors.JWSSignatureVerificationFailed);

const before = await client.tokenIntrospection(config, token);
await client.tokenRevocation(config, token);
const after = await client.tokenIntrospection(config, token);

const wrong = await client.discovery(new URL(issuer), clientId, undefined, authentication("wrong"), options);
const refused = await client.clientCredentialsGrant(wrong).catch((error) => error);

console.log(
  JSON.stringify({
    granted: { type: granted.token_type, expiresIn: granted.expires_in },
    payload,
    header: protectedHeader,
    before,
    after,
    refused: { code: refused.code, status: refused.status, challenges: refused.cause },
  }),
);

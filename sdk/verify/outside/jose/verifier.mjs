// Verifies Errand's tokens with the npm package jose. Copy this file.

import { createHash } from "node:crypto";
import { createRemoteJWKSet, jwtVerify } from "jose";

// newVerifier finds the keys by the issuer's metadata (RFC 8414 §3), and returns a function that
// accepts the tokens of that issuer for one audience. keyAge is in milliseconds: one minute, as the
// issuer's Cache-Control says.
export async function newVerifier(issuer, audience, keyAge = 60_000) {
  const response = await fetch(issuer + "/.well-known/oauth-authorization-server", { redirect: "error", signal: AbortSignal.timeout(5_000) });
  const metadata = await response.json();
  if (metadata.issuer !== issuer) throw new Error(`the metadata is of issuer ${metadata.issuer}`);
  const keys = createRemoteJWKSet(new URL(metadata.jwks_uri), { cacheMaxAge: keyAge, cooldownDuration: 10_000 });

  // verify returns what a token says that caller, whose certificate (in DER, as
  // request.socket.getPeerCertificate().raw) the handshake has proven, presents.
  return async function verify(token, caller) {
    if (token.length > 8192) throw new Error("the token is too long");
    const { payload } = await jwtVerify(token, keys, {
      issuer,
      audience,
      typ: "at+jwt",
      algorithms: ["ES256", "RS256", "EdDSA"],
      requiredClaims: ["exp", "iat", "jti"],
      maxTokenAge: "15 minutes",
      clockTolerance: 5,
    });
    if (payload.aud !== audience) throw new Error("the token is for more than one audience");
    const thumbprint = createHash("sha256").update(caller).digest("base64url");
    if (payload.cnf?.["x5t#S256"] !== thumbprint) throw new Error("the token is bound to another certificate");
    return payload;
  };
}

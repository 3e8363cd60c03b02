// Lets a test talk to verifier.mjs, as ../internal/lines says. NODE_EXTRA_CA_CERTS is the file with
// the CA of the issuer's public listener.

import { createInterface } from "node:readline";
import { newVerifier } from "./verifier.mjs";

const { ERRAND_ISSUER, ERRAND_AUDIENCE, ERRAND_KEY_AGE } = process.env;
const verify = await newVerifier(ERRAND_ISSUER, ERRAND_AUDIENCE, parseFloat(ERRAND_KEY_AGE) * 1000);
for await (const line of createInterface({ input: process.stdin })) {
  const { token, certificate } = JSON.parse(line);
  let answer;
  try {
    answer = { subject: (await verify(token, Buffer.from(certificate, "base64"))).sub };
  } catch (error) {
    answer = { error: `${error.code ?? error.name}: ${error.message}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}

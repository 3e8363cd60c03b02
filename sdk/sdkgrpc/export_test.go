package sdkgrpc

// Refusal is what calls get for an error of sdk.
var Refusal = refusal

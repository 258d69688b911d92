/* SHA-2 and Ed25519. There is one hash at a time: who starts one finishes it before anybody starts the next. */
#ifndef DRIVERS_CRYPTO_H
#define DRIVERS_CRYPTO_H

#include <stdbool.h>
#include <stdint.h>

void crypto_sha256_start(void);
void crypto_sha512_start(void);
void crypto_hash(const void *bytes, uint32_t count);
/* The first `count` bytes of the digest; false when anything since the start went wrong. */
bool crypto_hash_finish(void *digest, uint32_t count);
/* Whether the key made this signature of the message. */
bool crypto_verify(const uint8_t *public_key, const uint8_t *signature, const void *message, uint32_t count);

#endif

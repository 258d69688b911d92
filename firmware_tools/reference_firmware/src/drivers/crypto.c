#include "drivers/crypto.h"

#include "drivers/mmio.h"
#include "npu_protocol.h"

static bool hash_failed;

static uint32_t run(uint32_t operation)
{
    mmio_write(REGISTER(CRYPTO, COMMAND), FIELD(CRYPTO_COMMAND_OPERATION, operation));
    return mmio_read(REGISTER(CRYPTO, STATUS));
}

static uint32_t run_over(uint32_t operation, const void *bytes, uint32_t count)
{
    mmio_write(REGISTER(CRYPTO, SOURCE), (uint32_t)(uintptr_t)bytes);
    mmio_write(REGISTER(CRYPTO, LENGTH), count);
    return run(operation);
}

void crypto_sha256_start(void)
{
    hash_failed = FIELD_OF(run(NPU_CRYPTO_OPERATION_SHA256_START), CRYPTO_STATUS_FAILED);
}

void crypto_sha512_start(void)
{
    hash_failed = FIELD_OF(run(NPU_CRYPTO_OPERATION_SHA512_START), CRYPTO_STATUS_FAILED);
}

void crypto_hash(const void *bytes, uint32_t count)
{
    hash_failed |= FIELD_OF(run_over(NPU_CRYPTO_OPERATION_HASH_UPDATE, bytes, count), CRYPTO_STATUS_FAILED);
}

bool crypto_hash_finish(void *digest, uint32_t count)
{
    hash_failed |= FIELD_OF(run(NPU_CRYPTO_OPERATION_HASH_FINISH), CRYPTO_STATUS_FAILED);
    mmio_read_bytes(REGISTER(CRYPTO, DIGEST), digest, count);
    return !hash_failed;
}

bool crypto_verify(const uint8_t *public_key, const uint8_t *signature, const void *message, uint32_t count)
{
    mmio_write_bytes(REGISTER(CRYPTO, PUBLIC_KEY), public_key, NPU_PUBLIC_KEY_BYTES);
    mmio_write_bytes(REGISTER(CRYPTO, SIGNATURE), signature, NPU_SIGNATURE_BYTES);
    uint32_t status = run_over(NPU_CRYPTO_OPERATION_ED25519_VERIFY, message, count);
    return FIELD_OF(status, CRYPTO_STATUS_VERIFIED) && !FIELD_OF(status, CRYPTO_STATUS_FAILED);
}

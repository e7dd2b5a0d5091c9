/* What CRC-32C has besides mpk_crc32c. */
#ifndef MPK_CRC32C_H
#define MPK_CRC32C_H

#include "mpickpt.h"

uint32_t mpk__crc32c_combine(uint32_t first, uint32_t second, size_t second_bytes);
MPK_API uint32_t mpk__crc32c_portable(uint32_t crc, const void *data, size_t bytes);

#endif

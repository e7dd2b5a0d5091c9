/* CRC-32C against the published check value, the portable form against the one with instructions, and joining. */
#include "check.h"
#include "crc32c.h"

int main(void) {
    CHECK(mpk_crc32c(0, "123456789", 9) == 0xe3069283u); /* the check value of RFC 3720's polynomial */
    uint8_t zeros[32] = {0}; /* RFC 3720, B.4 */
    CHECK(mpk_crc32c(0, zeros, sizeof zeros) == 0x8a9136aau);
    CHECK(mpk_crc32c(7, zeros, 0) == 7);

    size_t room = 100000;
    uint8_t *data = malloc(room);
    uint64_t seed = 42;
    fill_random(data, room, &seed);
    for (int round = 0; round < 500; round++) {
        size_t from = next_random(&seed) % 100, bytes = next_random(&seed) % (room - from);
        size_t cut = bytes ? next_random(&seed) % bytes : 0;
        uint32_t whole = mpk_crc32c(0, data + from, bytes);
        uint32_t first = mpk_crc32c(0, data + from, cut), second = mpk_crc32c(0, data + from + cut, bytes - cut);
        CHECK(mpk__crc32c_portable(0, data + from, bytes) == whole);
        CHECK(mpk_crc32c(first, data + from + cut, bytes - cut) == whole);
        CHECK(mpk__crc32c_combine(first, second, bytes - cut) == whole);
    }
    free(data);
    return 0;
}

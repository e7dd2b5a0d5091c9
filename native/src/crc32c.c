/* CRC-32C (Castagnoli), as of RFC 3720. Three streams at a time on processors that have the instruction, because it
 * takes one word a cycle but gives its result three cycles later; eight tables elsewhere. Pure functions. */
#include "crc32c.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* bits reversed */
#define STREAM ((size_t)512) /* bytes of each of the three streams between two joins */
#define LINE ((size_t)64)
#define AHEAD 3072 /* bytes to prefetch: the processor's own guess stops at each page */

static uint32_t tables[8][256];
static uint32_t over_stream[4][256]; /* a CRC followed by STREAM zero bytes, byte by byte of the CRC */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Product of two polynomials modulo POLYNOMIAL, bits reversed: 0x80000000 is 1. */
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1 ? b >> 1 ^ POLYNOMIAL : b >> 1;
    }
    return product;
}

/* x to the power of 8 * bytes. */
static uint32_t power(size_t bytes) {
    uint32_t result = 0x80000000u, square = 0x00800000u; /* 1, and x^8 */
    for (; bytes; bytes >>= 1, square = multiply(square, square))
        if (bytes & 1) result = multiply(result, square);
    return result;
}

uint32_t mpk__crc32c_combine(uint32_t first, uint32_t second, size_t second_bytes) {
    return multiply(power(second_bytes), first) ^ second;
}

static void make_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
        tables[0][i] = crc;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 0xff];
    uint32_t shift = power(STREAM);
    for (int t = 0; t < 4; t++)
        for (uint32_t i = 0; i < 256; i++) over_stream[t][i] = multiply(shift, i << (8 * t));
}

uint32_t mpk__crc32c_portable(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *p = data;
    pthread_once(&once, make_tables);
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^ tables[4][low >> 24] ^
              tables[3][p[4]] ^ tables[2][p[5]] ^ tables[1][p[6]] ^ tables[0][p[7]];
    }
    for (; bytes; bytes--) crc = crc >> 8 ^ tables[0][(crc ^ *p++) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)
#include <immintrin.h>
#define WITH_CRC __attribute__((target("sse4.2")))
#define CRC_WORD(crc, word) _mm_crc32_u64(crc, word)
#define CRC_BYTE(crc, byte) _mm_crc32_u8(crc, byte)
static bool has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define WITH_CRC __attribute__((target("+crc")))
#define CRC_WORD(crc, word) __crc32cd((uint32_t)(crc), word)
#define CRC_BYTE(crc, byte) __crc32cb(crc, byte)
static bool has_instruction(void) { return getauxval(AT_HWCAP) & HWCAP_CRC32; }
#endif

#ifdef WITH_CRC
static uint64_t load(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static uint32_t skip_stream(uint32_t crc) {
    return over_stream[0][crc & 0xff] ^ over_stream[1][crc >> 8 & 0xff] ^ over_stream[2][crc >> 16 & 0xff] ^
           over_stream[3][crc >> 24];
}

WITH_CRC static uint32_t with_instruction(uint32_t crc, const uint8_t *p, size_t bytes) {
    crc = ~crc;
    for (; bytes >= 3 * STREAM; bytes -= 3 * STREAM, p += 3 * STREAM) {
        uint64_t a = crc, b = 0, c = 0; /* as wide as the instruction has them */
        for (size_t line = 0; line < STREAM; line += LINE) {
            for (size_t stream = 0; stream < 3; stream++) __builtin_prefetch(p + AHEAD + stream * STREAM + line);
            for (size_t i = line; i < line + LINE; i += 8) {
                a = CRC_WORD(a, load(p + i));
                b = CRC_WORD(b, load(p + STREAM + i));
                c = CRC_WORD(c, load(p + 2 * STREAM + i));
            }
        }
        crc = skip_stream(skip_stream((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    for (; bytes >= 8; bytes -= 8, p += 8) crc = (uint32_t)CRC_WORD(crc, load(p));
    for (; bytes; bytes--) crc = CRC_BYTE(crc, *p++);
    return ~crc;
}
#endif

uint32_t mpk_crc32c(uint32_t crc, const void *data, size_t bytes) {
#ifdef WITH_CRC
    if (has_instruction()) {
        pthread_once(&once, make_tables);
        return with_instruction(crc, data, bytes);
    }
#endif
    return mpk__crc32c_portable(crc, data, bytes);
}

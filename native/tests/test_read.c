/* Reading back: any alignment of memory and file, flipped bits found and named, a file that ends too early. */
#include "check.h"

enum { BLOCK = 8192, MOST = 12 * BLOCK, MANY = 2100 }; /* MANY blocks are five chunks */

static void test_small(const uint8_t *data, uint8_t *room, uint64_t *seed) {
    for (int round = 0; round < 400; round++) {
        size_t bytes = round % 7 ? next_random(seed) % MOST + 1 : MOST;
        uint64_t offset = round % 3 ? next_random(seed) % 5 * 4096 : next_random(seed) % 10000;
        size_t blocks = (bytes + BLOCK - 1) / BLOCK, corrupt[MOST / BLOCK], n;
        uint32_t checksums[MOST / BLOCK];
        for (size_t b = 0; b < blocks; b++)
            checksums[b] = mpk_crc32c(0, data + b * BLOCK, bytes - b * BLOCK < BLOCK ? bytes - b * BLOCK : BLOCK);
        char *path = make_slot(1);
        int fd = open(path, O_WRONLY), direct = round % 2;
        CHECK(pwrite(fd, data, bytes, (off_t)offset) == (ssize_t)bytes);
        uint8_t *to = room + (round % 5 ? 0 : 24);
        CHECK(mpk_read_blocks(path, offset, to, bytes, BLOCK, checksums, direct, corrupt, &n) == 0);
        CHECK(n == 0 && memcmp(to, data, bytes) == 0);

        size_t at = next_random(seed) % bytes;
        uint8_t flipped = data[at] ^ (uint8_t)(1 << next_random(seed) % 8);
        CHECK(pwrite(fd, &flipped, 1, (off_t)(offset + at)) == 1);
        CHECK(mpk_read_blocks(path, offset, to, bytes, BLOCK, checksums, direct, corrupt, &n) == 0);
        CHECK(n == 1 && corrupt[0] == at / BLOCK);

        CHECK(pwrite(fd, data, bytes, (off_t)offset) == (ssize_t)bytes);
        size_t left = next_random(seed) % bytes;
        CHECK(ftruncate(fd, (off_t)(offset + left)) == 0);
        CHECK(mpk_read_blocks(path, offset, to, bytes, BLOCK, checksums, direct, corrupt, &n) == 0);
        CHECK(n == blocks - left / BLOCK && corrupt[0] == left / BLOCK);
        close(fd);
        unlink(path);
        free(path);
    }
}

/* Several threads share the chunks of one call. */
static void test_large(uint64_t *seed) {
    uint8_t *large = mpk_alloc((size_t)MANY * BLOCK, 0), *back = mpk_alloc((size_t)MANY * BLOCK, 0);
    static uint32_t checksums[MANY];
    static size_t found[MANY];
    fill_random(large, (size_t)MANY * BLOCK, seed);
    for (size_t b = 0; b < MANY; b++) checksums[b] = mpk_crc32c(0, large + b * BLOCK, BLOCK);
    for (int round = 0; round < 40; round++) {
        size_t n, first = next_random(seed) % MANY, second = next_random(seed) % MANY;
        char *path = make_slot(1);
        int fd = open(path, O_WRONLY);
        CHECK(pwrite(fd, large, (size_t)MANY * BLOCK, 0) == (ssize_t)MANY * BLOCK);
        CHECK(pwrite(fd, "?!", 2, (off_t)(first * BLOCK)) == 2 && pwrite(fd, "?!", 2, (off_t)(second * BLOCK)) == 2);
        close(fd);
        memset(back, 0, (size_t)MANY * BLOCK);
        CHECK(mpk_read_blocks(path, 0, back, (size_t)MANY * BLOCK, BLOCK, checksums, round % 2, found, &n) == 0);
        CHECK(n == (first == second ? 1 : 2) && found[0] == (first < second ? first : second));
        back[first * BLOCK] = large[first * BLOCK], back[first * BLOCK + 1] = large[first * BLOCK + 1];
        back[second * BLOCK] = large[second * BLOCK], back[second * BLOCK + 1] = large[second * BLOCK + 1];
        CHECK(memcmp(back, large, (size_t)MANY * BLOCK) == 0);
        unlink(path);
        free(path);
    }
    mpk_free(large, (size_t)MANY * BLOCK);
    mpk_free(back, (size_t)MANY * BLOCK);
}

int main(void) {
    uint64_t seed = 7;
    uint8_t *data = malloc(MOST), *room = mpk_alloc(MOST + 4096, 0);
    fill_random(data, MOST, &seed);
    test_small(data, room, &seed);
    test_large(&seed);
    size_t corrupt[1], n;
    CHECK(mpk_read_blocks("no-such-file", 0, room, 1, BLOCK, (uint32_t[]){0}, 1, corrupt, &n) == -ENOENT);
    CHECK(mpk_read_blocks("no-such-file", 0, room, 1, 100, (uint32_t[]){0}, 1, corrupt, &n) == -EINVAL);
    free(data);
    mpk_free(room, MOST + 4096);
    return 0;
}

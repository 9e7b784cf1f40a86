/*
 * What the loops share: the cases of a file, as vmtest/model/case.py packs them (x86_64), and the clock.
 *
 * A loop runs all of them once to warm up and once with the clock on, and prints the seconds of that and how many came
 * to their end. It does for each case what an executor does: the code page and the data window are written anew, all
 * registers set and read, and the window compared with what it was.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, WINDOW = 2 * PAGE, GENERAL = 17, XMM = GENERAL * 8, MXCSR = XMM + 256, STATE = MXCSR + 4 + 256 + 85 };
#define CODE 0x10000000ul
#define DATA 0x20000000ul

struct loop_case {
    uint8_t length;
    const uint8_t *code, *state, *patches;
    uint16_t number;
};

static struct loop_case *cases;
static size_t how_many;
static uint8_t window[WINDOW]; /* as the case that runs began with it */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void read_cases(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die(path);
    long size = ftell(file);
    uint8_t *at = malloc((size_t)size), *end = at + size;
    rewind(file);
    if (fread(at, 1, (size_t)size, file) != (size_t)size) die(path);
    cases = calloc((size_t)size / STATE + 1, sizeof *cases);
    while (at < end) {
        struct loop_case *c = &cases[how_many++];
        c->length = at[0], memcpy(&c->number, at + 1, 2);
        c->code = at + 3, c->state = c->code + c->length, c->patches = at = (uint8_t *)c->state + STATE;
        for (int i = 0; i < c->number; i++) {
            uint16_t length;
            memcpy(&length, at + 2, 2);
            at += 4 + length;
        }
    }
}

static void fill(const struct loop_case *c, uint8_t *code, uint8_t *data)
{
    memset(window, 0, WINDOW);
    const uint8_t *p = c->patches;
    for (int i = 0; i < c->number; i++) {
        uint16_t place[2];
        memcpy(place, p, 4);
        memcpy(window + place[0], p + 4, place[1]);
        p += 4 + place[1];
    }
    memcpy(data, window, WINDOW);
    memset(code, 0, PAGE);
    memcpy(code + PAGE - c->length, c->code, c->length);
}

static int written(const uint8_t *data) { return memcmp(window, data, WINDOW) != 0; }

static int run_case(const struct loop_case *c); /* whether it came to its end */

static int measure(void)
{
    struct timespec begin, end;
    size_t ok = 0;
    for (int timed = 0; timed < 2; timed++) {
        ok = 0;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (size_t i = 0; i < how_many; i++) ok += (size_t)run_case(&cases[i]);
        clock_gettime(CLOCK_MONOTONIC, &end);
    }
    double seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    printf("%.9f %zu\n", seconds, ok);
    return 0;
}

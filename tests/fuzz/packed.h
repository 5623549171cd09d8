/*
 * packed.h: what a fuzz input is: a sparse image file, its data file, and bytes that drive
 * what is done to them. Images with clusters of 64 KiB become inputs of a few KiB this way.
 *
 *   4 bytes   length of the image file in sectors of 512 bytes, little-endian like all here
 *   4 bytes   length of the data file, likewise
 *   blocks    516 bytes each: a sector's number (bit 31: of the data file), its bytes
 *   script    the rest, less than one block
 *
 * seeds.py makes inputs from images (pack) and images from inputs (unpack).
 */
#ifndef TESTS_FUZZ_PACKED_H
#define TESTS_FUZZ_PACKED_H

#include <stddef.h>
#include <stdint.h>

typedef struct packed {
    int fd;      /* the image, a file in memory, new for each input */
    int data_fd; /* the data file */
    uint64_t data_size;
    const uint8_t *script; /* of the input */
    size_t script_length;
} packed;

/* Ends the program with a message if what must hold does not: the fuzzer keeps the input. */
#define must(condition, ...)                                                             \
    do {                                                                                 \
        if (!(condition))                                                                \
            packed_broken(__FILE__, __LINE__, #condition, __VA_ARGS__);                  \
    } while (0)
_Noreturn void packed_broken(const char *file, int line, const char *condition,
                             const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Makes the files of an input; a length in it that is too large is cut. */
packed packed_open(const uint8_t *data, size_t size);
void packed_close(packed *p);

/* libFuzzer's entry points, both in every target. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                               unsigned seed);

/* Where a format keeps its tables: for the mutator, which changes an entry of one of them,
 * or a field of the header, more often than a byte of anything else. */
typedef struct packed_format {
    struct packed_field {
        uint16_t offset; /* in the file's first sector */
        uint8_t width;   /* bytes */
        bool table;      /* where a table of words lies, the first of which points on */
    } fields[24];        /* up to the first with width 0 */
    unsigned cluster_bits_at; /* one byte */
    uint64_t flags[4];        /* bits of entries */
} packed_format;
extern const packed_format packed_this_format; /* the target's */

#endif

/*
 * O3: what a chain as a whole may cost, however little its files hold.
 */
#include "tests/chain-support.h"

#define MIB ((uint64_t)1 << 20)

static void put32(uint8_t *at, uint32_t value)
{
    value = GUINT32_TO_BE(value);
    memcpy(at, &value, sizeof value);
}

/* NAME in front, BACKING behind (or NULL): a qcow2 image of nothing, in one page on disk, with
 * an L1 table of 32 MiB. */
static void make_wide_qcow2(const char *name, const char *backing)
{
    enum { NAME_AT = 200, L1_AT = 65536 };
    uint8_t header[NAME_AT + 64] = {0};
    const uint32_t entries = 4u << 20;
    put32(header, 0x514649fb);
    put32(header + 4, 2);
    put32(header + 12, backing ? NAME_AT : 0);
    put32(header + 16, backing ? (uint32_t)strlen(backing) : 0);
    put32(header + 20, 9);
    put32(header + 24, entries >> (32 - 15)); /* 32 KiB for each entry */
    put32(header + 28, entries << 15);
    put32(header + 36, entries);
    put32(header + 44, L1_AT);
    put32(header + 52, 512);
    put32(header + 56, 1);
    if (backing)
        memcpy(header + NAME_AT, backing, strlen(backing));
    g_autofree char *path = support_path("%s", name);
    support_save(path, header, sizeof header);
    support_run("truncate -s %llu %s", (unsigned long long)(L1_AT + 33 * MIB), name);
}

/* The same in qcow's first version. */
static void make_wide_qcow1(const char *name, const char *backing)
{
    enum { NAME_AT = 48, L1_AT = 65536 };
    uint8_t header[NAME_AT + 64] = {0};
    put32(header, 0x514649fb);
    put32(header + 4, 1);
    put32(header + 12, NAME_AT);
    put32(header + 16, (uint32_t)strlen(backing));
    put32(header + 24, (4u << 20) >> (32 - 15));
    header[32] = 9;
    header[33] = 6;
    put32(header + 44, L1_AT);
    memcpy(header + NAME_AT, backing, strlen(backing));
    g_autofree char *path = support_path("%s", name);
    support_save(path, header, sizeof header);
    support_run("truncate -s %llu %s", (unsigned long long)(L1_AT + 33 * MIB), name);
}

/* Nine layers, each of which is allowed; w0.qcow2 and v0.qcow are the tops. */
Test(chain_bounds, O3_tables_are_bounded_for_the_chain_not_only_for_each_layer)
{
    chain_options native = {.decoder = CHAIN_DECODER_NATIVE};
    for (unsigned i = 0; i < 9; i++) {
        g_autofree char *name = g_strdup_printf("w%u.qcow2", i);
        g_autofree char *below = g_strdup_printf("w%u.qcow2", i + 1);
        make_wide_qcow2(name, i < 8 ? below : NULL);
    }
    make_wide_qcow1("v.qcow", "w2.qcow2");
    chain *c = must_open("w6.qcow2", &native);
    uint8_t buf[512] = {1};
    cr_assert_eq(chain_read(c, buf, chain_size(c) - 512, 512), 0);
    cr_assert_eq(buf[0], 0);
    chain_close(c);
    must_refuse("w0.qcow2", &native, IMAGE_ERROR_REFUSED,
                PARTS("w7.qcow2: the tables of the chain of ", "256 MiB"));
    must_refuse("v.qcow", &native, IMAGE_ERROR_REFUSED,
                PARTS("w8.qcow2: the tables of the chain of ", "v.qcow "));
}

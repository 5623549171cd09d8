/*
 * test-vote.c: the vote against tables of cases, and random ones against a naive model.
 *
 * Contents are written as strings: case "AAB|ABB" has one letter per sector, a replica
 * between each two bars; '!' alone is a replica that failed, '-' one that abstains.
 */
#include "quorum/vote.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

typedef struct panel {
    vote_ballot ballots[VOTE_REPLICAS_MAX];
    uint8_t *data[VOTE_REPLICAS_MAX];
    unsigned n;
    size_t length;
} panel;

/* All bytes of a sector are its letter, but for the last one, so that a comparison that
 * stops early is found out. */
static void letter_fill(uint8_t *sector, size_t length, char letter)
{
    memset(sector, 0x5a, length);
    sector[length - 1] = (uint8_t)letter;
}

/* `tail`: bytes of the last sector. */
static panel *panel_new(const char *text, size_t tail)
{
    panel *p = g_new0(panel, 1);
    g_auto(GStrv) words = g_strsplit(text, "|", -1);
    size_t sectors = 0;
    for (char **w = words; *w; w++)
        sectors = MAX(sectors, strlen(*w));
    p->length = (sectors - 1) * VOTE_SECTOR + tail;
    for (char **w = words; *w; w++) {
        vote_ballot *ballot = &p->ballots[p->n];
        ballot->abstains = **w == '-';
        ballot->error = **w == '!' ? -EIO : 0;
        if (**w != '-' && **w != '!') {
            cr_assert_eq(strlen(*w), sectors);
            ballot->data = p->data[p->n] = g_malloc(p->length);
            for (size_t s = 0; s < sectors; s++)
                letter_fill(p->data[p->n] + s * VOTE_SECTOR,
                            s + 1 == sectors ? tail : VOTE_SECTOR, (*w)[s]);
        }
        p->n++;
    }
    return p;
}

static void panel_free(panel *p)
{
    for (unsigned i = 0; i < p->n; i++)
        g_free(p->data[i]);
    g_free(p);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(panel, panel_free)

typedef struct vote_case {
    const char *replicas;
    unsigned threshold;
    int result;
    uint64_t winners;
    const char *served; /* letters; NULL: not served */
    const char *ranges; /* "first sector+sectors:groups=winners in hex", blank between */
} vote_case;

static char *ranges_text(const vote_verdict *verdict, unsigned n)
{
    GString *text = g_string_new(NULL);
    for (size_t i = 0; i < verdict->n_ranges; i++) {
        const vote_range *r = &verdict->ranges[i];
        g_string_append_printf(
            text, "%s%llu+%llu:", i ? " " : "",
            (unsigned long long)(r->offset / VOTE_SECTOR),
            (unsigned long long)((r->length + VOTE_SECTOR - 1) / VOTE_SECTOR));
        for (unsigned k = 0; k < n; k++)
            g_string_append_c(
                text, r->group[k] == VOTE_NO_GROUP ? '-' : (char)('0' + r->group[k]));
        g_string_append_printf(text, "=%llx", (unsigned long long)r->winners);
    }
    return g_string_free(text, FALSE);
}

static void check_case(const vote_case *c, size_t tail)
{
    g_autoptr(panel) p = panel_new(c->replicas, tail);
    g_autofree uint8_t *out = g_malloc(p->length);
    vote_verdict verdict;
    vote_verdict_init(&verdict);
    vote_count(p->ballots, p->n, c->threshold, p->length, out, &verdict);
    cr_assert_eq(verdict.result, c->result, "%s: result %d", c->replicas, verdict.result);
    cr_assert_eq(verdict.winners, c->winners, "%s: winners %llx", c->replicas,
                 (unsigned long long)verdict.winners);
    g_autofree char *ranges = ranges_text(&verdict, p->n);
    cr_assert_str_eq(ranges, c->ranges, "%s: ranges %s, not %s", c->replicas, ranges,
                     c->ranges);
    if (c->served) {
        g_autoptr(panel) served = panel_new(c->served, tail);
        cr_assert_eq(memcmp(out, served->data[0], p->length), 0, "%s: served",
                     c->replicas);
    }
    vote_verdict again;
    vote_verdict_init(&again);
    vote_count(p->ballots, p->n, c->threshold, p->length, NULL, &again);
    cr_assert_eq(again.result, verdict.result);
    cr_assert_eq(again.n_ranges, verdict.n_ranges);
    vote_verdict_clear(&again);
    vote_verdict_clear(&verdict);
}

static void check_cases(const vote_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        check_case(&cases[i], VOTE_SECTOR);
        check_case(&cases[i], 1);
        check_case(&cases[i], 300);
    }
}

Test(vote, R1_threshold_or_EIO)
{
    static const vote_case cases[] = {
        {"A|A|A", 1, 0, 7, "A", ""},
        {"A|A|A", 2, 0, 7, "A", ""},
        {"A|A|A", 3, 0, 7, "A", ""},
        {"A", 1, 0, 1, "A", ""},
        {"A|A|B", 2, 0, 3, "A", "0+1:001=3"},
        {"A|A|B", 3, -EIO, 0, NULL, "0+1:001=0"},
        {"A|B|A", 2, 0, 5, "A", "0+1:010=5"},
        {"B|A|A", 2, 0, 6, "A", "0+1:011=6"},
        {"A|B|C", 2, -EIO, 0, NULL, "0+1:012=0"},
        {"A|B|C", 1, 0, 1, "A", "0+1:012=1"},
        {"A|B", 2, -EIO, 0, NULL, "0+1:01=0"},
        {"A|B|B|A|B", 3, 0, 0x16, "B", "0+1:01101=16"},
        {"A|B|B|A|C", 3, -EIO, 0, NULL, "0+1:01102=0"},
    };
    check_cases(cases, G_N_ELEMENTS(cases));
}

Test(vote, R1_one_bad_sector_fails_all_of_the_request)
{
    static const vote_case cases[] = {
        {"AAAAA|AABAA|AACAA", 2, -EIO, 0, NULL, "2+1:012=0"},
        {"AAAAB|AAAAC|AAAAD", 2, -EIO, 0, NULL, "4+1:012=0"},
        {"ABAAA|ABBAA|ABCCA", 2, -EIO, 0, NULL, "2+1:012=0 3+1:001=3"},
    };
    check_cases(cases, G_N_ELEMENTS(cases));
}

Test(vote, R2_tie_goes_to_first)
{
    static const vote_case cases[] = {
        {"A|B", 1, 0, 1, "A", "0+1:01=1"},
        {"A|B|A|B", 2, 0, 5, "A", "0+1:0101=5"},
        {"A|B|B|A", 2, 0, 9, "A", "0+1:0110=9"},
        {"C|A|B|B|A", 2, 0, 0x12, "A", "0+1:01221=12"},
        {"A|B|B", 1, 0, 6, "B", "0+1:011=6"}, /* no tie: the larger group */
        {"-|B|A", 1, 0, 2, "B", "0+1:-01=2"},
    };
    check_cases(cases, G_N_ELEMENTS(cases));
}

Test(vote, R2_disjoint_bad_sectors_are_served)
{
    static const vote_case cases[] = {
        {"XAAAA|AAYAA|AAAAZ", 2, 0, 0, "AAAAA", "0+1:011=6 2+1:010=5 4+1:001=3"},
        {"XBCDE|AXCDE|ABXDE", 2, 0, 0, "ABCDE", "0+1:011=6 1+1:010=5 2+1:001=3"},
        {"XXCDE|ABXXE|ABCDX", 2, 0, 0, "ABCDE", "0+2:011=6 2+2:010=5 4+1:001=3"},
    };
    check_cases(cases, G_N_ELEMENTS(cases));
}

Test(vote, R2_neighbours_with_one_grouping_are_one_range)
{
    static const vote_case cases[] = {
        {"ABCDE|ABXYE|ABCDE", 2, 0, 5, "ABCDE", "2+2:010=5"},
        {"AAAA|AXAX|AAAA", 2, 0, 5, "AAAA", "1+1:010=5 3+1:010=5"},
        {"AAAA|AXXA|AAYA", 2, -EIO, 0, NULL, "1+1:010=5 2+1:012=0"},
        {"AB|CD|EF", 2, -EIO, 0, NULL, "0+2:012=0"},
    };
    check_cases(cases, G_N_ELEMENTS(cases));
}

Test(vote, R3_failed_and_abstaining_replicas_do_not_vote)
{
    static const vote_case cases[] = {
        {"A|!|A", 2, 0, 5, "A", ""},
        {"!|A|A", 2, 0, 6, "A", ""},
        {"A|-|A", 2, 0, 5, "A", ""},
        {"A|!|B", 2, -EIO, 0, NULL, "0+1:0-1=0"},
        {"A|!|!", 2, -EIO, 0, NULL, "0+1:0--=0"},
        {"AB|!|!", 2, -EIO, 0, NULL, "0+2:0--=0"},
        {"A|-|-", 2, -EIO, 0, NULL, "0+1:0--=0"},
        {"A|-|-", 1, 0, 1, "A", ""},
        {"AB|!|AC|-|AB", 2, 0, 0x11, "AB", "1+1:0-1-0=11"},
    };
    check_cases(cases, G_N_ELEMENTS(cases));
}

Test(vote, R3_too_few_replies_give_the_errno_of_most)
{
    static const struct {
        int errors[5]; /* 1: abstains */
        unsigned n, threshold;
        int result;
    } cases[] = {
        {{-ENOENT}, 1, 1, -ENOENT},
        {{-EIO, -ENOSPC, -ENOSPC}, 3, 2, -ENOSPC},
        {{-ENOSPC, -EIO, -ENOSPC}, 3, 2, -ENOSPC},
        {{-EIO, -ENOSPC}, 2, 1, -EIO},
        {{-ENOSPC, -EIO}, 2, 1, -ENOSPC},
        {{0, -ETIMEDOUT, -EIO}, 3, 2, -ETIMEDOUT},
        {{-EPERM, -EIO, -EIO, -EPERM, 0}, 5, 3, -EPERM},
        {{1, 1, 0}, 3, 2, -EIO},
        {{1, 1, 1}, 3, 1, -EIO},
        {{1, -EPERM, 0}, 3, 2, -EPERM},
    };
    uint8_t sector[VOTE_SECTOR] = {0};
    for (size_t c = 0; c < G_N_ELEMENTS(cases); c++) {
        vote_ballot ballots[5];
        for (unsigned i = 0; i < cases[c].n; i++) {
            int e = cases[c].errors[i];
            ballots[i] = (vote_ballot){e ? NULL : sector, e < 0 ? e : 0, e == 1};
        }
        vote_verdict verdict;
        vote_verdict_init(&verdict);
        vote_count(ballots, cases[c].n, cases[c].threshold, sizeof sector, NULL,
                   &verdict);
        cr_assert_eq(verdict.result, cases[c].result, "case %zu: %d", c, verdict.result);
        cr_assert_eq(verdict.winners, 0);
        cr_assert_eq(verdict.n_ranges, 1);
        cr_assert_eq(verdict.ranges[0].winners, 0);
        cr_assert_eq(verdict.ranges[0].length, VOTE_SECTOR);
        vote_verdict_clear(&verdict);
    }
}

Test(vote, R3_errno_of_writes_and_flushes)
{
    static const struct {
        int results[5];
        unsigned n, threshold;
        int result;
    } cases[] = {
        {{0, 0, 0}, 3, 3, 0},
        {{0, -EIO, 0}, 3, 2, 0},
        {{0, -EIO, 0}, 3, 3, -EIO},
        {{-EIO, -ENOSPC, 0}, 3, 2, -EIO},
        {{-ENOSPC, -EIO, 0}, 3, 2, -ENOSPC},
        {{-EIO, -ENOSPC, -ENOSPC}, 3, 1, -ENOSPC},
        {{-EIO, -ENOSPC, -EPERM, -EPERM, -ENOSPC}, 5, 1, -ENOSPC},
        {{-EIO, 0, 0, 0, 0}, 5, 5, -EIO},
        {{0}, 0, 1, -EIO},
    };
    for (size_t c = 0; c < G_N_ELEMENTS(cases); c++)
        cr_assert_eq(vote_errno(cases[c].results, cases[c].n, cases[c].threshold),
                     cases[c].result, "case %zu", c);
}

Test(vote, R2_unanimous_only_without_any_failure)
{
    static const struct {
        const char *replicas;
        unsigned threshold;
        bool expected;
    } cases[] = {
        {"AB|AB|AB", 2, true},  {"AB|AB|AB", 3, true},  {"AB|-|AB", 2, true},
        {"AB|-|-", 1, true},    {"AB|-|-", 2, false},   {"AB|!|AB", 2, false},
        {"!|AB|AB", 2, false},  {"AB|AB|AC", 2, false}, {"XB|AB|AB", 2, false},
        {"AB|AB|AB", 4, false}, {"-|AB|AC", 1, false},  {"-|-|-", 1, false},
    };
    for (size_t c = 0; c < G_N_ELEMENTS(cases); c++) {
        g_autoptr(panel) p = panel_new(cases[c].replicas, 511);
        cr_assert_eq(vote_unanimous(p->ballots, p->n, cases[c].threshold, p->length),
                     cases[c].expected, "%s", cases[c].replicas);
    }
}

/* Differences at both sides of every boundary of the pieces that the compare walks in. */
Test(vote, R2_one_byte_anywhere_is_seen)
{
    const size_t length = (512u << 10) + 77;
    uint8_t *data[3];
    vote_ballot ballots[3] = {0};
    for (unsigned i = 0; i < 3; i++) {
        ballots[i].data = data[i] = g_malloc(length);
        support_pattern(data[i], length, 0, 1);
    }
    g_autofree uint8_t *out = g_malloc(length);
    cr_assert(vote_unanimous(ballots, 3, 2, length));
    vote_verdict verdict;
    vote_verdict_init(&verdict);
    for (size_t edge = 0; edge <= length; edge += 64u << 10) {
        for (size_t at = edge ? edge - 1 : 0; at <= edge && at < length; at++) {
            unsigned bad = (unsigned)(at % 3);
            data[bad][at] ^= 1;
            cr_assert(!vote_unanimous(ballots, 3, 2, length));
            vote_count(ballots, 3, 2, length, out, &verdict);
            data[bad][at] ^= 1;
            cr_assert_eq(verdict.result, 0);
            cr_assert_eq(verdict.n_ranges, 1);
            cr_assert_eq(verdict.ranges[0].offset, at / VOTE_SECTOR * VOTE_SECTOR);
            cr_assert_eq(verdict.winners, 7u & ~(1u << bad));
            cr_assert_eq(memcmp(out, data[0], length), 0);
        }
    }
    vote_verdict_clear(&verdict);
    for (unsigned i = 0; i < 3; i++)
        g_free(data[i]);
}

/* A range that crosses pieces is still one range; so is a failure over all of them. */
Test(vote, R2_ranges_join_across_pieces)
{
    const size_t length = 1u << 20;
    g_autofree uint8_t *good = g_malloc(length);
    g_autofree uint8_t *bad = g_malloc(length);
    support_pattern(good, length, 0, 1);
    memcpy(bad, good, length);
    for (size_t at = 100u << 10; at < 700u << 10; at += VOTE_SECTOR)
        bad[at]++;
    vote_ballot ballots[3] = {{.data = good}, {.data = bad}, {.data = good}};
    vote_verdict verdict;
    vote_verdict_init(&verdict);
    vote_count(ballots, 3, 2, length, NULL, &verdict);
    cr_assert_eq(verdict.n_ranges, 1);
    cr_assert_eq(verdict.ranges[0].offset, 100u << 10);
    cr_assert_eq(verdict.ranges[0].length, 600u << 10);
    ballots[1].error = ballots[2].error = -ENXIO;
    vote_count(ballots, 3, 2, length, NULL, &verdict);
    cr_assert_eq(verdict.result, -ENXIO);
    cr_assert_eq(verdict.n_ranges, 1);
    cr_assert_eq(verdict.ranges[0].length, length);
    vote_verdict_clear(&verdict);
}

Test(vote, R1_empty_request)
{
    vote_ballot ballots[2] = {{.data = (const uint8_t *)""}, {.error = -EIO}};
    vote_verdict verdict;
    vote_verdict_init(&verdict);
    vote_count(ballots, 2, 1, 0, NULL, &verdict);
    cr_assert_eq(verdict.result, 0);
    cr_assert_eq(verdict.winners, 1);
    vote_count(ballots, 2, 2, 0, NULL, &verdict);
    cr_assert_eq(verdict.result, -EIO);
    cr_assert_eq(verdict.n_ranges, 0);
    vote_verdict_clear(&verdict);
}

Test(vote, R1_sixty_four_replicas)
{
    uint8_t good[VOTE_SECTOR], bad[VOTE_SECTOR];
    letter_fill(good, sizeof good, 'A');
    letter_fill(bad, sizeof bad, 'B');
    vote_ballot ballots[VOTE_REPLICAS_MAX] = {0};
    for (unsigned i = 0; i < VOTE_REPLICAS_MAX; i++)
        ballots[i].data = i < 31 ? bad : good;
    vote_verdict verdict;
    vote_verdict_init(&verdict);
    vote_count(ballots, VOTE_REPLICAS_MAX, 33, VOTE_SECTOR, NULL, &verdict);
    cr_assert_eq(verdict.result, 0);
    cr_assert_eq(verdict.winners, ~UINT64_C(0) << 31);
    vote_count(ballots, VOTE_REPLICAS_MAX, 34, VOTE_SECTOR, NULL, &verdict);
    cr_assert_eq(verdict.result, -EIO);
    vote_verdict_clear(&verdict);
}

/* The model: one byte per sector and replica, counted in the plainest way. */
enum { MODEL_SECTORS = 600, MODEL_REPLICAS = 7 };
typedef struct model {
    unsigned n, threshold, sectors;
    size_t length;
    int error[MODEL_REPLICAS];
    bool abstains[MODEL_REPLICAS];
    uint8_t content[MODEL_REPLICAS][MODEL_SECTORS];
} model;

static bool model_votes(const model *m, unsigned i)
{
    return !m->abstains[i] && m->error[i] == 0;
}

/* The winner's content of a sector, or -1. */
static int model_winner(const model *m, unsigned s)
{
    int winner = -1;
    unsigned most = 0;
    for (unsigned i = 0; i < m->n; i++) {
        if (!model_votes(m, i))
            continue;
        unsigned same = 0;
        for (unsigned k = 0; k < m->n; k++)
            same += model_votes(m, k) && m->content[k][s] == m->content[i][s];
        if (same >= m->threshold && same > most) {
            most = same;
            winner = m->content[i][s];
        }
    }
    return winner;
}

static bool model_differs(const model *m, unsigned s)
{
    int seen = -1;
    for (unsigned i = 0; i < m->n; i++) {
        if (!model_votes(m, i))
            continue;
        if (seen >= 0 && m->content[i][s] != seen)
            return true;
        seen = m->content[i][s];
    }
    return false;
}

static int model_result(const model *m)
{
    unsigned votes = 0, most = 0;
    int voted = -EIO;
    for (unsigned i = 0; i < m->n; i++) {
        votes += model_votes(m, i);
        unsigned same = 0;
        for (unsigned k = 0; k < m->n; k++)
            same += !m->abstains[k] && m->error[k] == m->error[i];
        if (!m->abstains[i] && m->error[i] != 0 && same > most) {
            most = same;
            voted = m->error[i];
        }
    }
    if (votes < m->threshold)
        return voted;
    for (unsigned s = 0; s < m->sectors; s++)
        if (model_winner(m, s) < 0)
            return -EIO;
    return 0;
}

static void model_make(model *m, uint64_t *seed)
{
    static const int errors[] = {-EIO, -ENOSPC, -ETIMEDOUT};
    memset(m, 0, sizeof *m);
    m->n = 1 + (unsigned)(support_random(seed) % MODEL_REPLICAS);
    m->threshold = 1 + (unsigned)(support_random(seed) % m->n);
    m->sectors = 1 + (unsigned)(support_random(seed) % MODEL_SECTORS);
    size_t tail =
        support_random(seed) % 3 ? VOTE_SECTOR : 1 + support_random(seed) % VOTE_SECTOR;
    m->length = (m->sectors - 1) * VOTE_SECTOR + tail;
    for (unsigned i = 0; i < m->n; i++) {
        uint64_t kind = support_random(seed) % 12;
        m->abstains[i] = kind == 0;
        m->error[i] = kind == 1 ? errors[support_random(seed) % 3] : 0;
        unsigned bad = support_random(seed) % 3 ? 0 : 1 + support_random(seed) % 40;
        while (bad-- > 0) {
            unsigned s = (unsigned)(support_random(seed) % m->sectors);
            unsigned end = MIN(m->sectors, s + 1 + support_random(seed) % 8);
            uint8_t version = (uint8_t)(support_random(seed) % 3);
            memset(m->content[i] + s, version, end - s);
        }
    }
}

static unsigned sector_bytes(const model *m, unsigned s)
{
    return (unsigned)MIN(m->length - (size_t)s * VOTE_SECTOR, VOTE_SECTOR);
}

static uint8_t *model_data(const model *m, unsigned i)
{
    uint8_t *data = g_malloc(m->length);
    for (unsigned s = 0; s < m->sectors; s++)
        memset(data + (size_t)s * VOTE_SECTOR, m->content[i][s], sector_bytes(m, s));
    return data;
}

/* Each sector against the range that lists it, and that ranges are maximal. */
static void check_ranges(const model *m, const vote_verdict *verdict)
{
    size_t r = 0;
    for (unsigned s = 0; s < m->sectors; s++) {
        uint64_t at = (uint64_t)s * VOTE_SECTOR;
        while (r < verdict->n_ranges &&
               verdict->ranges[r].offset + verdict->ranges[r].length <= at)
            r++;
        const vote_range *range = r < verdict->n_ranges && verdict->ranges[r].offset <= at
                                      ? &verdict->ranges[r]
                                      : NULL;
        int winner = model_winner(m, s);
        cr_assert_eq(range != NULL, winner < 0 || model_differs(m, s), "sector %u", s);
        if (!range)
            continue;
        cr_assert_leq(at + sector_bytes(m, s), range->offset + range->length);
        uint8_t next = 0;
        for (unsigned i = 0; i < m->n; i++) {
            bool wins = range->winners >> i & 1;
            cr_assert_eq(wins, model_votes(m, i) && m->content[i][s] == winner);
            cr_assert_eq(range->group[i] == VOTE_NO_GROUP, !model_votes(m, i));
            for (unsigned k = 0; k < i && model_votes(m, i); k++)
                cr_assert(!model_votes(m, k) ||
                          (range->group[i] == range->group[k]) ==
                              (m->content[i][s] == m->content[k][s]));
            if (range->group[i] != VOTE_NO_GROUP) {
                cr_assert_leq(range->group[i], next);
                next = (uint8_t)MAX(next, range->group[i] + 1);
            }
        }
        cr_assert_eq(range->n_groups, next);
    }
    for (size_t i = 1; i < verdict->n_ranges; i++) {
        const vote_range *a = &verdict->ranges[i - 1], *b = &verdict->ranges[i];
        cr_assert(a->offset + a->length < b->offset ||
                  (a->offset + a->length == b->offset &&
                   memcmp(a->group, b->group, m->n) != 0));
    }
}

static void check_model(const model *m, vote_verdict *verdict)
{
    vote_ballot ballots[MODEL_REPLICAS];
    uint8_t *data[MODEL_REPLICAS] = {0};
    unsigned voters = 0, failed = 0, differing = 0;
    uint64_t winners = 0;
    for (unsigned i = 0; i < m->n; i++) {
        data[i] = model_votes(m, i) ? model_data(m, i) : NULL;
        ballots[i] = (vote_ballot){data[i], m->error[i], m->abstains[i]};
        voters += model_votes(m, i);
        failed += !m->abstains[i] && m->error[i] != 0;
        winners |= (uint64_t)model_votes(m, i) << i;
    }
    for (unsigned s = 0; s < m->sectors; s++) {
        differing += model_differs(m, s);
        for (unsigned i = 0; i < m->n; i++)
            if (m->content[i][s] != model_winner(m, s))
                winners &= ~(UINT64_C(1) << i);
    }
    g_autofree uint8_t *out = g_malloc0(m->length);
    vote_count(ballots, m->n, m->threshold, m->length, out, verdict);
    cr_assert_eq(verdict->result, model_result(m));
    cr_assert_eq(verdict->winners, verdict->result ? 0 : winners);
    check_ranges(m, verdict);
    uint8_t expected[VOTE_SECTOR];
    for (unsigned s = 0; s < m->sectors && verdict->result == 0; s++) {
        memset(expected, model_winner(m, s), sizeof expected);
        cr_assert_eq(memcmp(out + (size_t)s * VOTE_SECTOR, expected, sector_bytes(m, s)),
                     0);
    }
    cr_assert_eq(vote_unanimous(ballots, m->n, m->threshold, m->length),
                 voters >= m->threshold && !failed && !differing);
    for (unsigned i = 0; i < m->n; i++)
        g_free(data[i]);
}

Test(vote, R1_R2_R3_random_against_a_model)
{
    uint64_t seed = support_seed();
    model *m = g_new(model, 1);
    vote_verdict verdict; /* used again and again: nothing may be left over */
    vote_verdict_init(&verdict);
    for (unsigned round = 0; round < 1500; round++) {
        model_make(m, &seed);
        check_model(m, &verdict);
    }
    vote_verdict_clear(&verdict);
    g_free(m);
}

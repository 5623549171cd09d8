/*
 * generation.c: see generation.h.
 *
 * Two witnesses. The file (inode, size, times, header) tells whether somebody wrote since it
 * was last looked at, and after a crash only which file it is. The mark in a qcow2 image tells
 * of which set, replica and session its content is; it goes with every copy, and stays when
 * others write to the image, so it can only ever speak against an image, but for one case: a
 * copy that kept the times.
 *
 *   record          file              mark                       verdict
 *   any             none recorded     any                        new            stale
 *   any             any               of another set             set            stale
 *   any             any               of another replica         neighbour      stale
 *   any             any               of a session before        older          stale
 *   any             any               of a session after         newer          stale
 *   any             any               gone, or damaged           unmarked       stale
 *   clean           any               of the right session,      unclean        stale
 *                                     which had not ended
 *   clean           the same          right                      recorded       trusted
 *   clean           inode touched     right                      recorded       trusted
 *   clean           written to        right                      changed        stale
 *   clean           another, same     right, clean               copy           trusted
 *                   size, times and
 *                   header
 *   clean           another, else     right                      moved          stale
 *   not clean       the same inode    right                      recorded       trusted
 *   not clean       another           right                      moved          stale
 *   any             another           never had one              file           stale
 *
 * - The right mark is the one that is recorded, bit for bit; or, as long as the record is not
 *   clean, this session's own: the marks are written after the record says that the session
 *   has begun and before it says that they are written, and again before it says that the
 *   session has ended. No guest writes between the first two, so images of either side hold
 *   the same; between the last two everything is on stable storage. A right mark may also be
 *   none (raw, remote, no room in the header).
 * - Why a copy is believed: its mark says that the session ended, the record says that none
 *   began since, and it has the very nanosecond of the last write. cp -a, rsync -a of an
 *   image at rest and a restored file system give that. Whoever wrote to the copy moved its
 *   mtime, unless he put it back on purpose. A copy with other times may be a true one or
 *   not: it is filled anew. A raw image has no mark and so no such proof.
 * - What cannot be told: after a crash, a write by others to the same inode; and the same
 *   image at an earlier moment of the very session that crashed, put back in place.
 * - "moved" is stale as a whole like the others. But if all replicas are (a machine's disk was
 *   copied as a whole), the record still fits them better than none: see disk-state.c.
 */
#include "quorum/generation.h"
#include <string.h>

static bool is_own(const generation_record *r, const qcow2_mark *mark)
{
    return mark->present && mark->replica == r->replica &&
           memcmp(mark->set_id, r->set_id, sizeof r->set_id) == 0;
}

/* After a crash the end of the session may have reached the image before the record. */
static bool is_right(const generation_record *r, const qcow2_mark *mark)
{
    qcow2_mark ended = r->identity->mark;
    if (qcow2_mark_equal(mark, &ended))
        return true;
    if (r->clean || !is_own(r, mark))
        return false;
    ended.clean = true;
    return mark->generation == r->generation || qcow2_mark_equal(mark, &ended);
}

/* Why a mark is not right. */
static generation_verdict judge_mark(const generation_record *r, const qcow2_mark *mark)
{
    const qcow2_mark *was = &r->identity->mark;
    if (!mark->present || mark->replica == 0)
        return GENERATION_UNMARKED;
    if (memcmp(mark->set_id, r->set_id, sizeof r->set_id) != 0)
        return GENERATION_SET;
    if (mark->replica != r->replica)
        return GENERATION_NEIGHBOUR;
    if (mark->generation > r->generation)
        return GENERATION_NEWER;
    if (is_own(r, was) && mark->generation == was->generation && !mark->clean)
        return GENERATION_UNCLEAN;
    return GENERATION_OLDER;
}

static bool is_copy(const generation_record *r, const identity *now)
{
    return r->clean && now->kind == IDENTITY_FILE && is_own(r, &now->mark) &&
           now->mark.clean && identity_same_content(r->identity, now);
}

generation_verdict generation_compare(const generation_record *recorded,
                                      const identity *now)
{
    if (recorded->identity->kind == IDENTITY_NONE)
        return GENERATION_NEW;
    if (!is_right(recorded, &now->mark))
        return judge_mark(recorded, &now->mark);
    switch (identity_compare(recorded->identity, now, recorded->clean)) {
    case IDENTITY_SAME:
    case IDENTITY_TOUCHED:
        return GENERATION_RECORDED;
    case IDENTITY_CHANGED:
        return GENERATION_CHANGED;
    case IDENTITY_OTHER:
        break;
    }
    if (is_copy(recorded, now))
        return GENERATION_COPY;
    return is_own(recorded, &now->mark) ? GENERATION_MOVED : GENERATION_FILE;
}

static bool is_same_set(const qcow2_mark *a, const qcow2_mark *b)
{
    return a->replica != 0 && b->replica != 0 &&
           memcmp(a->set_id, b->set_id, sizeof a->set_id) == 0;
}

static bool is_newer(const qcow2_mark *a, const qcow2_mark *b)
{
    return a->generation != b->generation ? a->generation > b->generation
                                          : a->clean && !b->clean;
}

uint64_t generation_behind(const identity *now, unsigned n, unsigned threshold)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned current = 0, newer = 0;
        uint64_t behind = 0;
        for (unsigned k = 0; k < n; k++) {
            const qcow2_mark *a = &now[i].mark, *b = &now[k].mark;
            bool same = is_same_set(a, b), older = same && is_newer(a, b);
            newer += same && is_newer(b, a);
            current += same && !older;
            behind |= (uint64_t)older << k;
        }
        if (newer == 0 && behind != 0 && current >= threshold)
            return behind;
    }
    return 0;
}

bool generation_trusted(generation_verdict verdict)
{
    return verdict == GENERATION_RECORDED || verdict == GENERATION_COPY;
}

const char *generation_reason(generation_verdict verdict)
{
    static const char *const reasons[] = {
        [GENERATION_RECORDED] = "is as recorded",
        [GENERATION_COPY] = "is a true copy of the file that is recorded",
        [GENERATION_CHANGED] = "changed behind our back",
        [GENERATION_FILE] = "is another file than the one recorded",
        [GENERATION_MOVED] = "is another file, and may be older than the one recorded",
        [GENERATION_NEW] = "is new in the set",
        [GENERATION_OLDER] = "is an older copy of itself",
        [GENERATION_NEWER] = "was written to by a session that is not recorded",
        [GENERATION_UNCLEAN] = "is a copy of itself taken while it was in use",
        [GENERATION_SET] = "was written to as part of another set",
        [GENERATION_NEIGHBOUR] = "is a copy of another replica of the set",
        [GENERATION_UNMARKED] = "was made anew",
        [GENERATION_BEHIND] = "missed a session by the marks of the others",
        [GENERATION_ELSEWHERE] = "missed changes of another set",
    };
    return reasons[verdict];
}

/*
 * qcow2-claim.c: guest clusters that a change has for itself between prepare and finish, under
 * the lock. They are few: one for each write under way.
 */
#include "formats/qcow2-writer.h"

void qcow2_claim_take(qcow2_writer *w, qcow2_claim *claim, uint64_t first, uint64_t last)
{
    *claim = (qcow2_claim){.next = w->claims, .first = first, .last = last};
    w->claims = claim;
}

void qcow2_claim_drop(qcow2_writer *w, const qcow2_claim *claim)
{
    qcow2_claim **at = &w->claims;
    while (*at != claim)
        at = &(*at)->next;
    *at = claim->next;
    pthread_cond_broadcast(&w->changed);
}

static bool is_claimed(const qcow2_writer *w, uint64_t first, uint64_t last)
{
    for (const qcow2_claim *claim = w->claims; claim; claim = claim->next)
        if (claim->first <= last && first <= claim->last)
            return true;
    return false;
}

bool qcow2_claim_await(qcow2_writer *w, uint64_t first, uint64_t last)
{
    bool waited = false;
    while (is_claimed(w, first, last)) {
        pthread_cond_wait(&w->changed, &w->map->lock);
        waited = true;
    }
    return waited;
}

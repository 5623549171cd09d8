/* progress.c: a bar or lines on standard error. */
#include "fuse/progress.h"
#include "fuse/cli.h"
#include <inttypes.h>
#include <unistd.h>

#define LINE_US   1000000
#define BAR_WIDTH 30

void progress_begin(progress *p, const char *name, bool wanted)
{
    bool terminal = isatty(STDERR_FILENO);
    int64_t now = g_get_monotonic_time();
    *p = (progress){.name = name,
                    .bar = terminal,
                    .lines = wanted && !terminal,
                    .started_us = now,
                    .told_us = now};
}

void progress_hide(progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
}

static double percent(uint64_t done, uint64_t size)
{
    return size ? 100.0 * (double)done / (double)size : 100.0;
}

static uint64_t bytes_per_second(const progress *p, uint64_t done)
{
    int64_t elapsed = MAX(g_get_monotonic_time() - p->started_us, 1);
    return (uint64_t)((double)done * 1e6 / (double)elapsed);
}

void progress_line(progress *p, uint64_t done, uint64_t size, uint64_t ranges)
{
    progress_hide(p);
    fprintf(stderr, "%s: %.1f%%, %s of %s, %s/s", p->name, percent(done, size),
            cli_size_text(done), cli_size_text(size),
            cli_size_text(bytes_per_second(p, done)));
    if (!p->plain)
        fprintf(stderr, ", %" PRIu64 " range%s differ%s or unreadable", ranges,
                ranges == 1 ? "" : "s", ranges == 1 ? "s" : "");
    fputc('\n', stderr);
}

static void bar_draw(progress *p, uint64_t done, uint64_t size, uint64_t ranges)
{
    char bar[BAR_WIDTH + 1];
    int filled = (int)(percent(done, size) * BAR_WIDTH / 100);
    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r%.12s [%s] %5.1f%% %s/s", p->name, bar, percent(done, size),
            cli_size_text(bytes_per_second(p, done)));
    if (!p->plain)
        fprintf(stderr, ", %" PRIu64 " differ", ranges);
    fputs("\033[K", stderr);
    fflush(stderr);
    p->shown = true;
}

void progress_tell(progress *p, uint64_t done, uint64_t size, uint64_t ranges)
{
    if (p->bar) {
        bar_draw(p, done, size, ranges);
    } else if (p->lines) {
        int64_t now = g_get_monotonic_time();
        if (done < size && now - p->told_us < LINE_US)
            return;
        p->told_us = now;
        progress_line(p, done, size, ranges);
    }
}

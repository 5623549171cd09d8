/*
 * runner.c: main() of every test program. A test that opens an image through libqcow has
 * this program executed again as the decoder's helper process.
 */
#include "formats/qcow-libqcow.h"
#include <criterion/criterion.h>
#include <stdbool.h>

/* Read by LeakSanitizer where it is linked in. Criterion keeps what CRITERION_OUTPUTS
 * says, which tests/run-tests sets. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:criterion_handle_args";
}

const char *__lsan_default_options(void);
const char *__lsan_default_options(void)
{
    return "print_suppressions=0";
}

int main(int argc, char **argv)
{
    libqcow_helper_main(argc, argv);
    struct criterion_test_set *tests = criterion_initialize();
    int failed = 0;
    if (criterion_handle_args(argc, argv, true))
        failed = !criterion_run_all_tests(tests);
    criterion_finalize(tests);
    return failed;
}

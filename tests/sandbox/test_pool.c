/*
 * Warm boxes: as good as new, and gone when in doubt.
 */
#include "tests/sandbox/lab.h"

#include "base/error.h"
#include "sandbox/pool.h"

#include <string.h>

#define FIRST_SLOT 140u

static BoxPool *pool;

static Box *take(const BoxSpec *spec, const char *tenant)
{
    g_autoptr(GError) error = NULL;
    Box *box = box_pool_take(pool, spec, tenant, &error);
    g_assert_no_error(error);
    return box;
}

static void expect(Box *box, const char *line, const char *want)
{
    g_auto(BoxResult) result = {0};
    g_autofree char *got = lab_sh(box, line, &result);
    g_assert_cmpstr(got, ==, want);
}

/* Everything a program could leave, and what it would find of it. */
#define LEAVE                                                                                      \
    "echo x > /testbed/f; echo x > /tmp/f; echo x > /dev/shm/f; echo x > ~/f; mkdir -p ~/.cfg; "   \
    "ipcmk -M 64 >/dev/null 2>&1; umask 077; echo left"
#define LOOK                                                                                       \
    "ls -A /testbed /tmp /dev/shm ~ | grep -v : | tr -d '\\n'; ipcs -m 2>/dev/null | grep -c "     \
    "0x........ | tr -d '\\n'; umask"

static void a_used_box_is_as_good_as_new(void)
{
    pool = box_pool_new(FIRST_SLOT, 2, 100);
    BoxSpec spec = lab_spec(0);
    Box *box = take(&spec, "a");
    g_auto(BoxResult) result = {0};
    g_autofree char *fresh = lab_sh(box, LOOK, &result);
    g_autofree char *report = box_report_json(box);
    for (int i = 0; i < 5; i++) {
        expect(box, LEAVE, "left");
        box_pool_give(pool, box);
        g_assert_cmpuint(box_pool_idle(pool), ==, 1);
        g_assert_true(take(&spec, "a") == box);
        expect(box, LOOK, fresh);
        g_autofree char *again = box_report_json(box);
        g_assert_cmpstr(report, ==, again);
    }
    g_assert_cmpuint(box_pool_opened(pool), ==, 1);
    box_pool_give(pool, box);
    g_clear_pointer(&pool, box_pool_free);
}

static char *network_of(Box *box)
{
    g_auto(BoxResult) result = {0};
    return lab_sh(box, "readlink /proc/self/ns/net", &result);
}

static void every_use_has_a_network_of_its_own(void)
{
    pool = box_pool_new(FIRST_SLOT, 1, 100);
    BoxSpec spec = lab_spec(0);
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (int i = 0; i < 5; i++) {
        Box *box = take(&spec, "a");
        char *first = network_of(box);
        g_autofree char *second = network_of(box);
        g_assert_cmpstr(first, ==, second); /* one episode, one network */
        g_hash_table_add(seen, first);
        expect(box, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo");
        box_pool_give(pool, box);
    }
    /* The kernel may use an inode number again; never the one before. */
    g_assert_cmpuint(g_hash_table_size(seen), >=, 2);
    g_clear_pointer(&pool, box_pool_free);
}

static void nothing_is_shared_between_tenants_or_specs(void)
{
    pool = box_pool_new(FIRST_SLOT, 3, 100);
    BoxSpec spec = lab_spec(1000), other = spec;
    other.limits.mem_bytes += 1 << 20;
    Box *mine = take(&spec, "a");
    box_pool_give(pool, mine);
    Box *theirs = take(&spec, "b"), *larger = take(&other, "a");
    g_assert_true(theirs != mine && larger != mine);
    g_assert_cmpuint(box_pool_opened(pool), ==, 3);
    g_assert_true(take(&spec, "a") == mine);
    g_autoptr(GError) error = NULL;
    g_assert_null(box_pool_take(pool, &spec, "c", &error)); /* all three are in use */
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    box_pool_give(pool, mine);
    box_pool_give(pool, theirs);
    box_pool_give(pool, larger);
    Box *fourth = take(&spec, "c"); /* the one idle the longest makes room */
    g_assert_cmpuint(box_pool_opened(pool), ==, 4);
    box_pool_give(pool, fourth);
    g_clear_pointer(&pool, box_pool_free);
}

static void a_box_in_doubt_is_not_kept(void)
{
    pool = box_pool_new(FIRST_SLOT, 1, 3);
    BoxSpec spec = lab_spec(1000);
    for (int i = 0; i < 7; i++) /* three uses each */
        box_pool_give(pool, take(&spec, "a"));
    g_assert_cmpuint(box_pool_opened(pool), ==, 3);
    g_clear_pointer(&pool, box_pool_free);

    pool = box_pool_new(FIRST_SLOT, 1, 100);
    Box *box = take(&spec, "a");
    g_auto(BoxResult) result = {0};
    g_autofree char *got = lab_sh(box, "/payload/payload hog malloc 400", &result);
    if (result.outcome == BOX_OUT_OF_MEMORY && result.oom_kills > 0) {
        box_pool_give(pool, box);
        g_assert_cmpuint(box_pool_idle(pool), ==, 0);
    } else {
        box_pool_give(pool, box); /* sampled: nothing was killed by the kernel */
    }
    g_clear_pointer(&pool, box_pool_free);
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    g_test_add_func("/pool/a_used_box_is_as_good_as_new", a_used_box_is_as_good_as_new);
    g_test_add_func("/pool/every_use_has_a_network_of_its_own", every_use_has_a_network_of_its_own);
    g_test_add_func("/pool/nothing_is_shared_between_tenants_or_specs",
                    nothing_is_shared_between_tenants_or_specs);
    g_test_add_func("/pool/a_box_in_doubt_is_not_kept", a_box_in_doubt_is_not_kept);
    return lab_end(g_test_run());
}
